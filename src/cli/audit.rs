//! `fewlabel audit`: the audit log as JSON lines.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::Usage;
use crate::project::{AuditRow, Project};

/// Arguments of `fewlabel audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// Data folder of the server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only what happened since this time: a day (2026-11-24, UTC) or a moment (2026-11-24T08:30:00Z)
    #[arg(long, value_name = "T")]
    since: Option<String>,
}

/// Writes one line per row, oldest first, as they are read.
///
/// # Errors
/// [`Usage`] for a time that is none; anything else when the log cannot be read or written out.
pub fn run(args: AuditArgs) -> anyhow::Result<()> {
    let since_ms = args.since.as_deref().map_or(Ok(i64::MIN), moment_ms)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let project = Project::open_worker(&args.data)
            .await
            .with_context(|| format!("--data {}", args.data.display()))?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut last = 0;
        loop {
            let page = project.audit_page(last, since_ms).await?;
            let Some(row) = page.last() else {
                break;
            };
            last = row.seq;
            for row in &page {
                writeln!(out, "{}", line(row))?;
            }
        }
        out.flush()?;
        project.close().await;
        Ok(())
    })
}

fn line(row: &AuditRow) -> Value {
    let time = jiff::Timestamp::from_millisecond(row.created_ms);
    json!({
        "seq": row.seq,
        "time": time.map(|time| format!("{time:.3}")).unwrap_or_default(),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "detail": serde_json::from_str::<Value>(&row.detail).unwrap_or_default(),
        "hash": row.hash,
    })
}

/// Milliseconds since 1970-01-01 UTC of a day's start or a moment.
fn moment_ms(text: &str) -> Result<i64, Usage> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(moment.as_millisecond());
    }
    let start = text
        .parse::<jiff::civil::Date>()
        .ok()
        .and_then(|day| day.to_zoned(jiff::tz::TimeZone::UTC).ok());
    match start {
        Some(start) => Ok(start.timestamp().as_millisecond()),
        None => Err(Usage(format!(
            "--since {text}: give a day such as 2026-11-24, or a moment such as 2026-11-24T08:30:00Z"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_moments() {
        assert_eq!(moment_ms("1970-01-02").unwrap(), 86_400_000);
        assert_eq!(moment_ms("1970-01-01T01:00:00+01:00").unwrap(), 0);
        assert!(moment_ms("yesterday").is_err());
    }
}
