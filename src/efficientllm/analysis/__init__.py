"""Analysis: intervals, validity, tables, comparisons. Pure functions of records."""
