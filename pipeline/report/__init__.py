"""The report: a kit of tables, plots and statistics, and the page they are put on."""
