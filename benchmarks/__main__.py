"""`python -m benchmarks`: what each script measures; `python -m benchmarks NAME …` starts one."""

from pathlib import Path

from proofs.index import main

if __name__ == "__main__":
    main(Path(__file__).parent)
