# Prints the newest Python of 3.13, 3.12, 3.11 that runs: names on the PATH first, then pyenv's.
for version in 3.13 3.12 3.11; do
  for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python"$version"; do
    if "$python" -c 'import ssl, venv' 2>/dev/null; then
      echo "$python"
      exit
    fi
  done
done
