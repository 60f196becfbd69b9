import re
import subprocess
import sys

import pytest

from study import estimation_figures as figures

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_figure_is_written_and_says_what_it_found(tmp_path, capsys):
  pytest.importorskip("matplotlib")
  figures.main([f"--out={tmp_path / 'new'}", "--only", "orlicz"])
  (file,) = (tmp_path / "new").iterdir()
  assert file.name == "orlicz.png"
  assert file.read_bytes().startswith(PNG)
  share = re.search(r"at most (0\.\d+) N", capsys.readouterr().out)
  assert share is not None
  assert 0.9 < float(share[1]) < 1


def test_without_matplotlib_it_is_named(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(SystemExit) as stopped:
    figures.main([f"--out={tmp_path}"])
  assert stopped.value.code == 1
  assert "pip install matplotlib" in capsys.readouterr().err


def test_without_scikit_learn_its_figures_are_skipped(tmp_path, capsys, monkeypatch):
  pytest.importorskip("matplotlib")
  monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
  figures.main([f"--out={tmp_path}", "--only", "subsample"])
  assert not list(tmp_path.iterdir())
  out = capsys.readouterr().out
  assert "subsample: skipped" in out
  assert "pip install scikit-learn" in out


@pytest.mark.parametrize("arguments", [[], ["--out=x", "--only", "nothing"]])
def test_bad_arguments_are_refused(arguments, capsys):
  with pytest.raises(SystemExit):
    figures.main(arguments)
  assert "usage" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_draws_all(tmp_path):
  pytest.importorskip("matplotlib")
  pytest.importorskip("sklearn")
  command = [sys.executable, "-W", "error", "-m", "study.estimation_figures"]
  subprocess.run([*command, f"--out={tmp_path}"], check=True)
  files = {file.stem: file.read_bytes() for file in tmp_path.iterdir()}
  assert set(files) == set(figures.FIGURES)
  assert all(image.startswith(PNG) and len(image) < 100_000 for image in files.values())
