build:
	.venv/bin/pip install --no-build-isolation --no-deps -q -e .
