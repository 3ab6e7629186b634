//! The unpack worker as a program of its own, for this crate's tests; the real one is `bowline unpack`.

fn main() -> std::process::ExitCode {
    bowline_image::unpack_worker_main()
}
