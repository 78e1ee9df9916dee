"""Reports: what studies hold, as tables, figures, and one page that needs nothing else (docs/report.md)."""
