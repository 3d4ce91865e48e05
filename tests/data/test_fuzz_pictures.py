"""A sample of proofs/fuzz_pictures.py: mutants of each format, through training, prepare, predict."""

from pathlib import Path

from proofs.fuzz_pictures import FORMATS, make_mutants, put_through


def test_mutants_of_every_format_are_bad_images_at_every_door_and_good_ones_served(tmp_path):
    mutants = {name: each for form in FORMATS for name, each in make_mutants(form, 12, seed=1)}
    bad_pictures = (Path(__file__).parent / "bad_pictures").glob("*.jpg")
    mutants |= {file.name: file.read_bytes() for file in bad_pictures}
    figures = put_through(tmp_path, mutants)
    assert figures["unreadable"] > len(mutants) // 2 and figures["good_served"] > 0
