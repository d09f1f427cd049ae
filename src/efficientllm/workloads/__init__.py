"""Workloads: units of work. They know nothing of meters; `measure` runs them."""
