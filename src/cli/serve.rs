//! `yardstick serve`: the embedded engine behind OpenAI-compatible HTTP.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use clap::Args;

use super::embedded::{self, EmbeddedArgs, Opened};
use super::{ExitStatus, Global, interrupt, output};
use crate::clock::Clock;
use crate::server::Server;

/// Serve the embedded engine over OpenAI-compatible HTTP.
///
/// Routes: /v1/models, /v1/completions, /v1/chat/completions, /health, /version.
/// There is no authentication: whoever reaches the port can use it.
#[derive(Debug, Args)]
pub struct Serve {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on, 0 for any that is free
    #[arg(long, default_value = "8080")]
    port: u16,
    /// Name that clients ask for [default: the model's]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    #[command(flatten)]
    engine: EmbeddedArgs,
}

impl Serve {
    /// Loads, serves until Ctrl-C or SIGTERM, lets running answers end for a moment.
    ///
    /// # Errors
    /// When the model cannot be loaded or the address cannot be listened on.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        let cancel = interrupt::token()?;
        let Opened { host, origin } = self.engine.open(&Clock::real())?;
        let name = self.served_model_name.unwrap_or_else(|| self.engine.served_name());
        let address = SocketAddr::new(self.host, self.port);
        // A port that is taken is told before the weights are loaded.
        let server = Server::start(host.clone(), address, &name)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .context("cannot start the runtime")?;
        if !runtime.block_on(embedded::load(&host, &cancel))? {
            runtime.shutdown_background();
            return Ok(ExitStatus::Interrupted);
        }
        output::note(&format!("{name} from {origin}, {}", host.precision()));
        if host.is_dummy() {
            output::warn("dummy weights: speeds are real, texts are noise");
        }
        if !self.host.is_loopback() {
            output::warn("there is no authentication: whoever reaches this port can use it");
        }
        output::note(&format!("listening on {}", server.url()));
        runtime.block_on(cancel.cancelled());
        output::note("stopping, running answers have a moment to end");
        server.stop_gracefully();
        // To be stopped is how a server ends.
        Ok(ExitStatus::Success)
    }
}
