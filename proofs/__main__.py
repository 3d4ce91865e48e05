"""`python -m proofs`: what each proof is for; `python -m proofs NAME …` starts one."""

from pathlib import Path

from proofs.index import main

if __name__ == "__main__":
    main(Path(__file__).parent)
