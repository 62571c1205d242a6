"""What every folder uses: argument checks, hints, fast functions beside their plain twins."""
