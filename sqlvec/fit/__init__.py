"""Training of encoders; needs the extra ``fit`` (scipy and scikit-learn)."""
