"""Batches of a kind for the tests of worker processes; apart from these, so that a worker need not
import them."""

import os

import numpy as np


class Odd:
    """Batch k is {"image": uint8 [2, 3] full of k, "number": k}; number 3 may end the process
    ("ends") or raise ("raises")."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self) -> "Odd":
        return self

    def __getitem__(self, number: int) -> dict:
        if self.what == "ends" and number == 3:
            os._exit(7)
        if self.what == "raises" and number == 3:
            raise ZeroDivisionError("number three")
        return {"image": np.full((2, 3), number, np.uint8), "number": number}
