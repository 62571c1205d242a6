"""Layer norm inside an LSTM on film reviews."""
