//! A registry in memory on loopback, for use by hand: prints its address and serves until it is ended.
//! `cargo run --example registry -p bowline-testkit`

fn main() {
    let registry = bowline_testkit::Registry::start();
    println!("{}", registry.host());
    loop {
        std::thread::park();
    }
}
