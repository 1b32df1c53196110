//! Samples of the measured figures, and the table that compares them.

use std::fmt;

use super::record::Role;

/// All samples of one measured figure.
#[derive(Default)]
pub struct Samples(Vec<u64>);

impl Samples {
    pub fn push(&mut self, sample: u64) {
        self.0.push(sample);
    }

    pub fn median(&self) -> u64 {
        self.quantile(1, 2)
    }

    pub fn quantile(&self, of: usize, parts: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * of / parts).copied().unwrap_or_default()
    }
}

/// A value for each of the two programs.
#[derive(Default)]
pub struct Pair<T> {
    pub ours: T,
    pub bare: T,
}

impl<T> Pair<T> {
    pub fn of(&mut self, role: Role) -> &mut T {
        match role {
            Role::Ours => &mut self.ours,
            Role::Bare => &mut self.bare,
        }
    }
}

pub struct Row {
    pub claim: String,
    pub ours: String,
    pub bare: String,
    pub compared: String,
    pub target: String,
    pub met: bool,
}

/// Returns a row that compares times in nanoseconds. With `most`, the target is met if taskfork's median is at most
/// `most` times the bare loop's.
pub fn times(claim: String, samples: &Pair<Samples>, most: impl Into<Option<f64>>) -> Row {
    let ratio = samples.ours.median() as f64 / samples.bare.median() as f64;
    let most = most.into();
    Row {
        claim,
        ours: spread(&samples.ours, "ms", 1e6, 3),
        bare: spread(&samples.bare, "ms", 1e6, 3),
        compared: format!("{ratio:.2}x"),
        target: most.map_or("-".into(), |most| format!("<= {most}x")),
        met: most.is_none_or(|most| ratio <= most),
    }
}

/// Returns a row that compares memory in KiB. The target is met if taskfork's median exceeds the bare loop's by at most
/// `most`.
pub fn memory(claim: String, samples: &Pair<Samples>, most: i64) -> Row {
    let more = samples.ours.median() as i64 - samples.bare.median() as i64;
    Row {
        claim,
        ours: spread(&samples.ours, "KiB", 1.0, 0),
        bare: spread(&samples.bare, "KiB", 1.0, 0),
        compared: format!("{more:+} KiB"),
        target: format!("<= +{most} KiB"),
        met: more <= most,
    }
}

/// Returns a row that compares amounts and has no target.
pub fn amounts(claim: String, samples: &Pair<Samples>) -> Row {
    let more = samples.ours.median() as i64 - samples.bare.median() as i64;
    Row {
        claim,
        ours: spread(&samples.ours, "", 1.0, 0),
        bare: spread(&samples.bare, "", 1.0, 0),
        compared: format!("{more:+}"),
        target: "-".into(),
        met: true,
    }
}

/// Returns a row that compares counts. The target is met if taskfork's count is 0.
pub fn nothing(claim: String, counts: &Pair<u64>) -> Row {
    Row {
        claim,
        ours: counts.ours.to_string(),
        bare: counts.bare.to_string(),
        compared: "-".into(),
        target: "0".into(),
        met: counts.ours == 0,
    }
}

/// Returns a row that compares counts with few and with many workers. The target is met if taskfork's count does not
/// grow.
pub fn growth(claim: String, few: &Pair<u64>, many: &Pair<u64>) -> Row {
    Row {
        claim,
        ours: format!("{} -> {}", few.ours, many.ours),
        bare: format!("{} -> {}", few.bare, many.bare),
        compared: format!("{:+}", many.ours as i64 - few.ours as i64),
        target: "+0".into(),
        met: many.ours <= few.ours,
    }
}

fn spread(samples: &Samples, unit: &str, scale: f64, digits: usize) -> String {
    let [low, median, high] = [1, 2, 3].map(|of| samples.quantile(of, 4) as f64 / scale);
    format!("{median:.digits$} {unit} ({low:.digits$}..{high:.digits$})")
}

pub fn print(rows: &[Row]) {
    print_named(["ours", "bare"], rows);
}

/// Prints the table, with other names for the two compared programs.
pub fn print_named(programs: [&str; 2], rows: &[Row]) {
    let [ours, bare] = programs.map(|program| format!("{program}, median (quartiles)"));
    print_line("", [&ours, &bare, "compared", "target", "met"]);
    for row in rows {
        let met = if row.met { "yes" } else { "NO" };
        print_line(&row.claim, [&row.ours, &row.bare, &row.compared, &row.target, met]);
    }
}

fn print_line(claim: impl fmt::Display, [ours, bare, compared, target, met]: [&str; 5]) {
    println!("{claim:<44} {ours:>32} {bare:>32} {compared:>9} {target:>10} {met:>4}");
}
