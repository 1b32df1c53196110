//! Replaces the program on disk while the server runs: by another build of the example, or by a broken one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::broken;

/// A directory with the program that the server executes.
pub struct Deployment {
    directory: PathBuf,
    /// The example as cargo has built it.
    example: PathBuf,
}

/// A new program that must not replace the running one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Broken {
    /// Exits with status 7 before the call
    Exits,
    /// Prints a text and exits with status 0
    Prints,
    /// Does not reach its call
    Hangs,
    /// The worker exits with status 7
    Crashes,
    /// The worker is never ready
    NeverReady,
    /// Has settings that the call refuses
    Refuses,
    /// Has no execute permission
    NotExecutable,
    /// Is a text file
    Text,
    /// Is a program for another architecture
    Architecture,
}

impl Broken {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Deployment {
    pub fn new(example: &Path) -> io::Result<Deployment> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("load-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let deployment = Deployment { directory, example: example.into() };
        deployment.deploy(0)?;
        Ok(deployment)
    }

    pub fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    /// Deploys a build of the example. Even and odd numbers are two builds, which differ in one byte at the end.
    pub fn deploy(&self, number: usize) -> io::Result<()> {
        let mut program = fs::read(&self.example)?;
        program.resize(program.len() + number % 2, 0);
        self.replace(&program, 0o755)
    }

    pub fn deploy_broken(&self, broken: Broken) -> io::Result<()> {
        match broken {
            Broken::NotExecutable => self.replace(&fs::read(&self.example)?, 0o644),
            Broken::Text => self.replace(b"This is the next release.\n", 0o755),
            Broken::Architecture => {
                let mut program = fs::read(&self.example)?;
                // The machine type in the header of an ELF file (elf(5)): AArch64 or x86-64, whichever this is not.
                let other: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
                program[18..20].copy_from_slice(&other.to_ne_bytes());
                self.replace(&program, 0o755)
            }
            _ => {
                let mut program = fs::read(std::env::current_exe()?)?;
                program.extend(broken::end(broken));
                self.replace(&program, 0o755)
            }
        }
    }

    /// Replaces the program by rename(2), as a deployment does. This process starts no other program meanwhile, so no
    /// other process inherits the descriptor, with which the program could not be executed (`ETXTBSY`, execve(2)).
    fn replace(&self, program: &[u8], mode: u32) -> io::Result<()> {
        let new = self.directory.join("new");
        let mut file = File::create(&new)?;
        file.write_all(program)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        drop(file);
        fs::rename(new, self.program())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
