//! Measures the throughput and latency of request lanes: echoes between two processes over a lane, compared
//! with one stream per request in the same run.
//!
//! Run it by `cargo run --release -p annulus --example lane [SECONDS]`. The example starts itself a second
//! time as the answering node. Each line is a closed loop of the given number of clients with 128-byte
//! messages. On a machine that does other work too, compare the ratios and not the absolute numbers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use annulus::transport::identity::{Authority, TlsIdentity};
use annulus::transport::kind::{BULK_HANDOFF, ECHO};
use annulus::transport::{
    BulkStream, Event, Inbound, Lane, PeerAddr, Request, Service, Transport, TransportConfig, limits,
};
use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::time::Instant;

const MESSAGE: Bytes = Bytes::from_static(&[7; 128]);

/// Echoes data requests. The transport itself echoes those of kind `ECHO`.
struct Echo;

impl Service for Echo {
    fn request(&self, request: Request) {
        request.responder.send(request.payload);
    }
}

/// Echo the frames of each bulk stream.
async fn echo_streams(mut inbound: Inbound) {
    while let Some(event) = inbound.next().await {
        let Event::Stream { mut stream, .. } = event else { continue };
        tokio::spawn(async move {
            while let Ok(Some(frame)) = stream.recv.frame().await {
                stream.send.frame(frame).await?;
            }
            stream.send.finish().await
        });
    }
}

fn bind(config: TransportConfig) -> Result<(Transport, Arc<dyn Service>)> {
    let service: Arc<dyn Service> = Arc::new(Echo);
    let (transport, inbound) = Transport::bind(config, Arc::downgrade(&service))?;
    tokio::spawn(echo_streams(inbound));
    Ok((transport, service))
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::args().nth(1).as_deref() {
        Some("serve") => runtime.block_on(serve()),
        seconds => {
            let seconds = seconds.map_or(Ok(2.0), str::parse)?;
            runtime.block_on(measure(Duration::from_secs_f64(seconds)))
        }
    }
}

/// The credentials and the cluster of the answering process, passed to it as one line of JSON.
type Given = (ClusterId, NodeUid, String, String, String);

async fn serve() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let (cluster, uid, cert_pem, key_pem, authority): Given = serde_json::from_str(&line)?;
    let identity = TlsIdentity { cert_pem, key_pem };
    let (transport, _service) = bind(config(cluster, uid, identity, authority))?;
    println!("{}", transport.local_addr());
    // Serve until the parent closes stdin or exits.
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line)).await??;
    Ok(())
}

fn config(cluster: ClusterId, uid: NodeUid, identity: TlsIdentity, authority: String) -> TransportConfig {
    TransportConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        cluster,
        lineage: Default::default(),
        uid,
        boot: BootId(rand::random()),
        start: Start { number: 1, id: rand::random() },
        identity,
        authorities: vec![authority],
    }
}

fn start_peer(authority: &Authority) -> Result<(Child, PeerAddr)> {
    let uid = NodeUid(rand::random());
    let identity = authority.sign_node(uid)?;
    let given: Given =
        (authority.cluster, uid, identity.cert_pem, identity.key_pem, authority.cert_pem.clone());
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    writeln!(child.stdin.as_mut().context("no stdin")?, "{}", serde_json::to_string(&given)?)?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("no stdout")?).read_line(&mut line)?;
    let addr = line.trim().parse().context("the peer did not print its address")?;
    Ok((child, PeerAddr { uid, addr }))
}

async fn measure(duration: Duration) -> Result<()> {
    let authority = Authority::create(ClusterId(rand::random()))?;
    let (mut child, peer) = start_peer(&authority)?;
    let uid = NodeUid(rand::random());
    let own = config(authority.cluster, uid, authority.sign_node(uid)?, authority.cert_pem.clone());
    let (transport, _service) = bind(own)?;
    // The warm-up lets QUIC's path MTU discovery finish before the first measurement.
    closed_loop("warm-up", 1, duration.min(Duration::from_secs(1)), &transport, &peer, echo).await?;
    for clients in [1, 64, 256] {
        closed_loop("lane", clients, duration, &transport, &peer, echo).await?;
    }
    for clients in [1, limits::MAX_BULK_STREAMS] {
        closed_loop("stream per request", clients, duration, &transport, &peer, stream).await?;
    }
    bulk(duration, &transport, &peer).await?;
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

async fn echo(transport: Transport, peer: PeerAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    transport.call(&peer, Lane::Data, ECHO, MESSAGE, deadline).await?;
    Ok(())
}

async fn stream(transport: Transport, peer: PeerAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = transport.open_bulk(&peer, BULK_HANDOFF, Bytes::new(), deadline).await?;
    stream.send.frame(MESSAGE).await?;
    stream.recv.frame().await?.context("no answer")?;
    tokio::spawn(stream.send.finish());
    Ok(())
}

async fn closed_loop<F>(
    name: &str,
    clients: usize,
    duration: Duration,
    transport: &Transport,
    peer: &PeerAddr,
    request: fn(Transport, PeerAddr) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let begun = Instant::now();
    let clients_run = (0..clients).map(|_| {
        let (transport, peer) = (transport.clone(), peer.clone());
        tokio::spawn(async move {
            let mut histogram = Histogram::<u64>::new(3)?;
            while begun.elapsed() < duration {
                let asked = std::time::Instant::now();
                request(transport.clone(), peer.clone()).await?;
                histogram.record(asked.elapsed().as_nanos() as u64)?;
            }
            anyhow::Ok(histogram)
        })
    });
    let mut all = Histogram::<u64>::new(3)?;
    for client in clients_run.collect::<Vec<_>>() {
        all.add(client.await??)?;
    }
    let per_second = all.len() as f64 / begun.elapsed().as_secs_f64();
    let us = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{name:>20} {clients:>4} clients {per_second:>9.0}/s  p50 {:>7.1} us  p99 {:>7.1} us  p99.9 {:>7.1} us",
        us(0.5),
        us(0.99),
        us(0.999)
    );
    Ok(())
}

async fn bulk(duration: Duration, transport: &Transport, peer: &PeerAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let BulkStream { mut send, mut recv } =
        transport.open_bulk(peer, BULK_HANDOFF, Bytes::new(), deadline).await?;
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        let frame = Bytes::from(vec![7; 1 << 20]);
        while begun.elapsed() < duration {
            send.frame(frame.clone()).await?;
        }
        send.finish().await
    });
    let mut bytes = 0;
    while let Some(frame) = recv.frame().await? {
        bytes += frame.len();
    }
    writer.await??;
    let rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("{:>20} {:>4} stream  {rate:>9.0} MB/s there and back", "bulk", 1);
    Ok(())
}
