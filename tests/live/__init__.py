"""Public implementations, installed from PyPI by the extra `[live]`, beside ours: a reference of
one's own can repeat one's own mistake.

They need TensorFlow and stay out of CI: where a package is missing, its tests skip. Run them with

    pip install -e '.[test,live]' && pytest tests/live
"""
