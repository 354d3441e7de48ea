//! Label values: closed sets, so that no client can make a series.

/// How a request ended, and where its answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Found whole in the memory tier.
    HitMemory,
    /// Found whole in the disk tier, or on its way there.
    HitDisk,
    /// Rendered from another form of the same decode.
    Derived,
    /// Attached to a run in progress.
    Coalesced,
    /// Made by a backend for this request.
    Computed,
    /// Not answered.
    Error,
}

/// Which front a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Front {
    /// gRPC.
    Grpc,
    /// The HTTP protocol of diffusers.
    Http,
}

/// A storage level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierName {
    /// The memory tier.
    Memory,
    /// The disk tier.
    Disk,
}

/// Which bound of one client was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientLimit {
    /// Requests a second.
    Requests,
    /// Bytes of inputs a second.
    Input,
    /// Bytes of answers a second.
    Output,
    /// Requests in progress.
    InFlight,
}

/// What is read again while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloadable {
    /// The configuration.
    Config,
    /// The data port's certificate and key, and the authorities of its clients.
    Certificate,
    /// The named clients.
    Clients,
}

/// Why a tier let an artifact go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionReason {
    /// For room.
    Size,
    /// Past its time to live.
    Expired,
    /// For room that others need on the same file system.
    Space,
}

/// What a tier answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupResult {
    /// The artifact.
    Hit,
    /// Not there.
    Miss,
    /// It was to be there, and is not.
    Stale,
    /// It is there, and not what was stored.
    Corrupt,
    /// The tier has no time now, or has failed.
    Throttled,
}

// === impl labels ===

impl Outcome {
    /// Whether the answer was there already, and no run was made for it or joined.
    pub const fn is_hit(self) -> bool {
        matches!(self, Self::HitMemory | Self::HitDisk)
    }

    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::HitMemory => "hit_memory",
            Self::HitDisk => "hit_disk",
            Self::Derived => "derived",
            Self::Coalesced => "coalesced",
            Self::Computed => "computed",
            Self::Error => "error",
        }
    }
}

impl Front {
    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

impl TierName {
    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

impl ClientLimit {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Requests, Self::Input, Self::Output, Self::InFlight];

    /// Metric label, and the configuration's key.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_second",
            Self::Input => "input_per_second",
            Self::Output => "output_per_second",
            Self::InFlight => "in_flight",
        }
    }
}

impl Reloadable {
    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Certificate => "certificate",
            Self::Clients => "clients",
        }
    }
}

impl EvictionReason {
    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Expired => "expired",
            Self::Space => "space",
        }
    }
}

impl LookupResult {
    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::Throttled => "throttled",
        }
    }
}

/// What became of a span that was to be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpanFate {
    /// The collector has it.
    Exported,
    /// Too many waited already: dropped.
    QueueFull,
    /// The collector did not take it: dropped.
    ExportFailed,
}

impl SpanFate {
    /// Every fate.
    pub const ALL: [Self; 3] = [Self::Exported, Self::QueueFull, Self::ExportFailed];

    /// Metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Exported => "exported",
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
        }
    }
}
