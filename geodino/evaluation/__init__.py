"""How good a model or a map is, against labels: figures with intervals, tables and pictures."""
