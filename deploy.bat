@python "%~dp0deploy.py" %*
