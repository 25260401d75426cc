//! Answers requests with bundles; knows nothing of training.
