"""Reports: studies as tables, figures, and one self-contained page (docs/report.md)."""
