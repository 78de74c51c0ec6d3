"""Reports of an evaluation: report.html, MODEL_CARD.md, plots and the table on the terminal."""
