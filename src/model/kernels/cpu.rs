//! Plain CPU kernels on float32 slices.
