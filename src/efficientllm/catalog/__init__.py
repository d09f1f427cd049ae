"""Facts with their sources: model shapes, machine peaks. No torch, no measurements."""
