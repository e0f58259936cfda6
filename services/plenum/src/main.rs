//! The plenum binary.
mod config;

fn main() {
    print!("{}{}", config::documentation(), config::default_file());
    let _ = config::load(&config::Sources::default());
}
