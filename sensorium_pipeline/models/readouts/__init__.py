"""Readouts, one module each: from the feature maps that all sessions share to the rates of one session's neurons."""
