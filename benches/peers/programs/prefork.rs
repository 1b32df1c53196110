//! The service with the crate prefork. It calls `fork()`, as in prefork's documentation.

mod worker;

use std::error::Error;
use std::net::TcpListener;

use nix::poll::PollTimeout;
use prefork::Prefork;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let listener = TcpListener::bind(worker::address())?;
    Prefork::from_resource(listener).with_num_processes(4).with_init(work).fork()?;
    Ok(())
}

fn work(_number: u32, listener: TcpListener) {
    let served = worker::begin().and_then(|()| worker::serve(&listener, None, || PollTimeout::NONE));
    if let Err(error) = served {
        eprintln!("Error: {error}");
        std::process::exit(1);
    }
}
