"""What a paper takes goes through pdflatex as it is: every table, every figure, the methods and the references."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from audited_run import HOSTILE, BuildRun, failed
from many_records import grid

from overheard.report.paper import write_paper
from overheard.report.run_folder import read_run

PAPER = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\begin{document}
{\footnotesize\raggedright\input{methods}\par}
TABLES
FIGURES
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""
TOO_WIDE = 1.0
"""Points by which a line may stick out: rounding."""


def run(command: list[str], folder: Path) -> str:
    """A tool's output, without a shell and without its own way to one."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_tables_figures_and_methods_compile(build_run: BuildRun) -> None:
    if shutil.which("pdflatex") is None or shutil.which("bibtex") is None:
        pytest.skip("no pdflatex found: install texlive-latex-recommended")
    records = [*grid(240), failed(240, HOSTILE + " \\input{secret} 50% of $x_1$ ~^ {"), failed(241, "ü \u2013 ε")]
    folder = write_paper(read_run(build_run(records, examples=[])))
    tables = sorted(path.stem for path in (folder / "tables").glob("*.tex"))
    figures = sorted(path.stem for path in (folder / "figures").glob("*.pdf"))
    assert tables == ["durations", "failures", "frontier", "outcomes", "voices"]
    assert figures == ["durations", "errors", "frontier"]
    text = PAPER.replace("TABLES", "\n".join(rf"\input{{tables/{name}}}" for name in tables))
    text = text.replace(
        "FIGURES",
        "\n".join(rf"\noindent\includegraphics[width=\columnwidth]{{figures/{name}}}\par" for name in figures),
    )
    (folder / "main.tex").write_text(text, encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    run(latex, folder)
    run(["bibtex", "main"], folder)
    run(latex, folder)
    log = run(latex, folder)
    assert (folder / "main.pdf").read_bytes().startswith(b"%PDF")
    assert "undefined" not in log.lower()
    # A line that is too wide is named with the file that it is in.
    sticking_out = [float(width) for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]
    assert [width for width in sticking_out if width > TOO_WIDE] == []
