//! `fewlabel split`: which images are learned from, validated on and held out.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::Usage;
use crate::project::{ImageId, Part, Project};

/// Arguments of `fewlabel split`.
#[derive(Args, Clone, Debug)]
pub struct SplitArgs {
    /// Data folder of the server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Put an image, and all of its patient, into train, validation or test; repeatable. Refused once one of them
    /// was offered as next sample or used in a round
    #[arg(long, value_name = "IMAGE=PART")]
    set: Vec<String>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Makes the changes, each by itself, and lists every image with its part.
///
/// # Errors
/// [`Usage`] for a change that is none; the reason when one is refused: those before it are made.
pub fn run(args: SplitArgs) -> anyhow::Result<()> {
    let changes: Vec<(ImageId, Part)> = args
        .set
        .iter()
        .map(|text| change(text))
        .collect::<Result<_, _>>()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let user = std::env::var("USER").unwrap_or_else(|_| "command line".to_owned());
        let project = Project::open_worker(&args.data)
            .await
            .with_context(|| format!("--data {}", args.data.display()))?
            .acting_as(&user);
        for (image, part) in changes {
            for moved in project.set_part(&image, part).await? {
                eprintln!("{moved} is now {}", part.as_str());
            }
        }
        let rows = project.split().await?;
        if args.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "image": row.image, "patient": row.patient, "part": row.part,
                        "reason": row.reason, "actor": row.actor, "ts": row.ts,
                    })
                })
                .collect();
            println!("{:#}", json!({ "split": rows }));
        } else {
            for row in &rows {
                println!(
                    "{}\t{}\t{}\t{}",
                    row.image,
                    row.part.as_str(),
                    row.patient,
                    row.reason
                );
            }
        }
        project.close().await;
        Ok(())
    })
}

/// `IMAGE=PART`; the image's id may hold `=`.
fn change(text: &str) -> Result<(ImageId, Part), Usage> {
    let wrong = |why: &str| {
        Usage(format!(
            "--set {text}: {why}; give IMAGE=train, IMAGE=validation or IMAGE=test"
        ))
    };
    let (image, part) = text
        .rsplit_once('=')
        .ok_or_else(|| wrong("there is no ="))?;
    let image = ImageId::parse(image).map_err(|error| wrong(&error.to_string()))?;
    let part = Part::parse(part).ok_or_else(|| wrong("there is no such part"))?;
    Ok((image, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_name_an_image_and_a_part() {
        let (image, part) = change("case_1=test").unwrap();
        assert_eq!((image.as_str(), part), ("case_1", Part::Test));
        for text in ["case_1", "case_1=hold-out", "../x=test", "=test"] {
            assert!(change(text).is_err(), "{text}");
        }
    }
}
