"""Wrong arguments: what was probably meant is named; help, completion, and the width of tables."""

import pytest

from googlenet_jax.cli import main as command


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "(did you mean 'train'?)"),
        (["train", "--config=digits", "--workdri=x"], "no --workdri (did you mean '--workdir'?)"),
        (
            ["train", "--config=digits", "--workdir=x", "--batch_size=64"],
            "no --batch_size (did you mean '--config.batch_size'?)",
        ),
        (
            ["train", "--config=digits", "--workdir=x", "--learning-rate", "1"],
            "no --learning-rate (did you mean '--config.schedule.learning_rate'?)",
        ),
        (
            ["train", "--config=digits", "--workdir=x", "--profil"],
            "no --profil (did you mean '--profile'?)",
        ),
        (["predict", "--weights=x", "a.jpg", "--jsno"], "no --jsno (did you mean '--json'?)"),
        (["bench", "trian", "googlenet"], "(did you mean 'train'?)"),
        (["plot", "x", "--unlike-anything"], "there is no --unlike-anything"),
    ],
)
def test_a_typing_error_is_named_with_what_was_meant(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", command.SUBCOMMANDS)
def test_every_help_has_an_example_that_its_parser_takes(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main([name, "--help"])
    assert "Example: googlenet-jax" in capsys.readouterr().out
    words = command.EXAMPLES[name].split()
    assert words[:2] == ["googlenet-jax", name]
    args, rest = command.build_parser().parse_known_args(words[1:])
    assert args.subcommand == name and all(command.FIELD.match(word) for word in rest)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_subcommands_and_options(shell, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--print-completion", shell])
    printed = capsys.readouterr().out
    assert "predict" in printed and "--weights" in printed


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("argv", [["googlenet"], ["googlenet", "--compare", "googlenet_bn"]])
def test_a_table_fits_the_terminal_and_loses_nothing(argv, columns, monkeypatch, capsys):
    def printed(width):
        monkeypatch.setenv("COLUMNS", str(width))
        assert command.main(["summary", *argv]) == 0
        return capsys.readouterr().out

    narrow, wide = printed(columns), printed(1000)
    assert max(map(len, narrow.splitlines())) <= columns
    assert set(narrow.replace("─", "").split()) == set(wide.replace("─", "").split())
