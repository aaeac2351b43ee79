"""What every stage agrees on: errors, ids, config, events, artifacts. Imports no stage and no torch."""
