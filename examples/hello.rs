//! Starts four workers that print a greeting and exit.

fn main() -> taskfork::Result<()> {
    env_logger::init();
    let id = taskfork::fork_processes(4, 100)?;
    println!("hello from worker {id}, pid {}", std::process::id());
    Ok(())
}
