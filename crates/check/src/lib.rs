//! `bowline check` and `bowline bench`: our conformance run and measures, against any CRI endpoint.
