//! A model that can be served: weights, description, signature, transform, and the digest over all of them.
