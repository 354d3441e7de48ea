//! `cache purge` and `cache verify`: sweeps over the disk, with a bar, and what came of them.

use std::io::IsTerminal as _;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    Purge, Verify,
    look::size,
    port::{self, AdminPort},
};
use crate::{
    cli::{answer, say},
    proto::{self, finding::Fault, purge_response, verify_response},
};

/// Bytes gone through, for people; nothing where nobody looks.
struct SweepBar(Option<ProgressBar>);

impl Purge {
    pub(super) async fn run(&self, mut port: AdminPort) -> anyhow::Result<()> {
        let content_key = match &self.key {
            Some(digits) => port::wire(port.key(digits).await?),
            None => bytes::Bytes::new(),
        };
        // Whole seconds, none of which is younger than what was asked for.
        let seconds = |age: std::time::Duration| age.as_secs() + u64::from(age.subsec_nanos() > 0);
        let request = proto::PurgeRequest {
            model: self.model.clone().unwrap_or_default(),
            content_key,
            older_than_seconds: self.older_than.map(seconds),
            all: self.all,
        };
        let mut events = port.purge(request).await?;
        let bar = SweepBar::on_terminal("purging");
        while let Some(response) = port.next(&mut events).await? {
            match response.event {
                Some(purge_response::Event::Progress(progress)) => bar.at(&progress),
                Some(purge_response::Event::Done(totals)) => {
                    bar.clear();
                    return self.tell(&totals);
                }
                None => {}
            }
        }
        bail!("the purge was broken off; what is gone is gone, purge again for the rest")
    }

    fn tell(&self, totals: &purge_response::Totals) -> anyhow::Result<()> {
        if self.json {
            return answer(json!({
                "memory_entries": totals.memory_entries,
                "queue_entries": totals.queue_entries,
                "disk_entries": totals.disk_entries,
                "disk_bytes": totals.disk_bytes,
                "left_entries": totals.left_entries,
            }));
        }
        answer(format_args!(
            "purged {} from memory, {} from the queue, {} from disk ({})",
            totals.memory_entries,
            totals.queue_entries,
            totals.disk_entries,
            size(totals.disk_bytes)
        ))?;
        if totals.left_entries > 0 {
            say(format_args!(
                "{} files could not be judged or removed; `latentgate cache verify` says what is the matter",
                totals.left_entries
            ));
        }
        Ok(())
    }
}

impl Verify {
    pub(super) async fn run(&self, mut port: AdminPort) -> anyhow::Result<()> {
        let mut events = port.verify(proto::VerifyRequest { repair: self.repair }).await?;
        let bar = SweepBar::on_terminal("verifying");
        let mut findings = Vec::new();
        while let Some(response) = port.next(&mut events).await? {
            match response.event {
                Some(verify_response::Event::Progress(progress)) => bar.at(&progress),
                Some(verify_response::Event::Finding(finding)) => findings.push(finding),
                Some(verify_response::Event::Done(totals)) => {
                    bar.clear();
                    return self.tell(&findings, &totals);
                }
                None => {}
            }
        }
        bail!("the verification was broken off; run it again")
    }

    /// What is damaged and still there makes the command fail, so that scripts notice.
    fn tell(&self, findings: &[proto::Finding], totals: &verify_response::Totals) -> anyhow::Result<()> {
        if self.json {
            answer(as_json(findings, totals)?)?;
        } else {
            for finding in findings {
                let key = port::read(&finding.content_key)?;
                let removed = if finding.removed { ", removed" } else { "" };
                answer(format_args!("{key}  {}: {}{removed}", fault_name(finding.fault()), finding.detail))?;
            }
            answer(summary(totals))?;
        }
        match totals.damaged_entries + totals.unreadable_entries - totals.removed_entries {
            0 => Ok(()),
            left if totals.unreadable_entries > 0 => bail!("damaged or unreadable: {left}; look at the disk"),
            left => bail!("damaged: {left}; --repair removes what is"),
        }
    }
}

fn summary(totals: &verify_response::Totals) -> String {
    let seconds = (totals.took_ms as f64 / 1e3).max(1e-3);
    format!(
        "{} entries, {} in {seconds:.1} s ({}/s): {} damaged, {} unreadable, {} removed",
        totals.entries,
        size(totals.bytes),
        size((totals.bytes as f64 / seconds) as u64),
        totals.damaged_entries,
        totals.unreadable_entries,
        totals.removed_entries,
    )
}

fn as_json(findings: &[proto::Finding], totals: &verify_response::Totals) -> anyhow::Result<Value> {
    let finding = |finding: &proto::Finding| {
        Ok(json!({
            "key": port::read(&finding.content_key)?.to_string(),
            "disk_bytes": finding.disk_bytes,
            "fault": fault_name(finding.fault()),
            "detail": finding.detail,
            "removed": finding.removed,
        }))
    };
    Ok(json!({
        "entries": totals.entries,
        "bytes": totals.bytes,
        "damaged_entries": totals.damaged_entries,
        "unreadable_entries": totals.unreadable_entries,
        "gone_entries": totals.gone_entries,
        "removed_entries": totals.removed_entries,
        "took_ms": totals.took_ms,
        "findings": findings.iter().map(finding).collect::<anyhow::Result<Value>>()?,
    }))
}

const fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Unspecified => "unknown",
        Fault::Damaged => "damaged",
        Fault::Unreadable => "unreadable",
    }
}

// === impl SweepBar ===

impl SweepBar {
    /// A bar on standard error, if that is a terminal.
    fn on_terminal(what: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(1).with_message(what);
        let template = "{msg} {bar:32} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    fn at(&self, progress: &proto::SweepProgress) {
        if let Some(bar) = &self.0 {
            // What came in meanwhile may be met, too.
            bar.set_length(progress.bytes_in_all.max(progress.bytes));
            bar.set_position(progress.bytes);
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
