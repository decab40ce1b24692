//! Launches that come in the same order over and over, as they do token after token, are handed to the driver as one graph.
//!
//! A span is what is launched between two uses of the stream for anything else. As long as a span goes on as the one before
//! did, its launches wait; if it ends where that ended, they go as a graph, in which only the parameters that differ are
//! replaced. Wherever that fails, they go one by one.

use std::ffi::c_void;
use std::ops::Range;

use super::driver::{Code, Driver, Graphs, Handle, KernelNode};

/// Launches for which a graph is worth its making.
const LEAST: usize = 16;

/// A kernel on its way to the device.
#[derive(Clone)]
struct Launch {
    function: Handle,
    groups: [u32; 3],
    threads: u32,
    /// Where its parameters are in [`Span::words`].
    words: Range<usize>,
}

/// Launches with nothing else in between.
#[derive(Default)]
struct Span {
    launches: Vec<Launch>,
    /// Parameters of all of them.
    words: Vec<u64>,
}

impl Span {
    fn clear(&mut self) {
        self.launches.clear();
        self.words.clear();
    }

    /// Whether the same kernels are launched in the same order.
    fn is_like(&self, other: &Self) -> bool {
        let functions = self.launches.iter().map(|launch| launch.function);
        functions.eq(other.launches.iter().map(|launch| launch.function))
    }

    /// Calls `call` with launch number `number` as the driver wants it.
    fn with<T>(&self, number: usize, call: impl FnOnce(&KernelNode) -> T) -> T {
        let Launch { function, groups: [x, y, z], threads, ref words } = self.launches[number];
        let mut parameters = [self.words[words.clone()].as_ptr().cast_mut().cast::<c_void>()];
        call(&KernelNode {
            function,
            groups: [x, y, z],
            threads: [threads, 1, 1],
            shared_bytes: 0,
            parameters: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
        })
    }

    /// Launches number `number`.
    fn launch(&self, number: usize, driver: &Driver, stream: Handle) -> Code {
        self.with(number, |node| {
            let ([x, y, z], [threads, ..]) = (node.groups, node.threads);
            // Sound: the driver copies the parameters before it returns, and reads as many bytes as the kernel has, which
            // are those that `Launches::add` was given.
            unsafe {
                (driver.launch)(
                    node.function,
                    x,
                    y,
                    z,
                    threads,
                    1,
                    1,
                    0,
                    stream,
                    node.parameters,
                    std::ptr::null_mut(),
                )
            }
        })
    }

    /// Launches `numbers`, one by one.
    fn launch_each(&self, numbers: Range<usize>, driver: &Driver, stream: Handle) -> Result<(), Code> {
        numbers.into_iter().try_for_each(|number| done(self.launch(number, driver, stream)))
    }
}

fn done(code: Code) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// A graph that the driver has made ready.
struct Graph {
    calls: &'static Graphs,
    graph: Handle,
    ready: Handle,
    nodes: Vec<Handle>,
    /// As its nodes have it.
    span: Span,
}

impl Graph {
    /// `span` as a graph: each launch after the one before.
    fn new(calls: &'static Graphs, span: &Span) -> Result<Self, Code> {
        let null = std::ptr::null_mut;
        let mut made = Self { calls, graph: null(), ready: null(), nodes: Vec::new(), span: Span::default() };
        // Sound, this and what follows: pointers are to handles, and those are what the driver gave.
        done(unsafe { (calls.create)(&mut made.graph, 0) })?;
        for number in 0..span.launches.len() {
            let mut node = null();
            let before = made.nodes.last().map_or(std::ptr::null(), std::ptr::from_ref);
            let count = usize::from(number > 0);
            let code = span.with(number, |launch| unsafe {
                (calls.add_kernel)(&mut node, made.graph, before, count, launch)
            });
            done(code)?;
            made.nodes.push(node);
        }
        done(unsafe { (calls.instantiate)(&mut made.ready, made.graph, 0) })?;
        made.span = Span { launches: span.launches.clone(), words: span.words.clone() };
        Ok(made)
    }

    /// Makes it the graph of `span`, which has the same kernels.
    fn update(&mut self, span: &Span) -> Result<(), Code> {
        for number in 0..span.launches.len() {
            let (old, new) = (&self.span.launches[number], &span.launches[number]);
            let words = new.words.clone();
            if old.groups != new.groups || self.span.words[words.clone()] != span.words[words] {
                let node = self.nodes[number];
                // Sound: the node is one of the graph that was made ready, and has the same kernel.
                done(
                    span.with(number, |launch| unsafe { (self.calls.set_kernel)(self.ready, node, launch) }),
                )?;
            }
        }
        self.span.launches.clone_from(&span.launches);
        self.span.words.clone_from(&span.words);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Sound: both are what the driver gave; it waits for what still runs.
        unsafe {
            if !self.ready.is_null() {
                (self.calls.destroy_ready)(self.ready);
            }
            if !self.graph.is_null() {
                (self.calls.destroy)(self.graph);
            }
        }
    }
}

/// What is launched in a stream.
pub(super) struct Launches {
    driver: &'static Driver,
    stream: Handle,
    span: Span,
    before: Span,
    /// Whether all of `span` waits.
    waits: bool,
    graph: Option<Graph>,
    /// Cleared when a graph fails, and where the driver has none.
    uses_graphs: bool,
    /// How often a graph was launched.
    #[cfg(test)]
    pub replays: usize,
}

// Sound: the driver's handles may be used from any thread.
unsafe impl Send for Launches {}

impl Launches {
    /// Into `stream`.
    pub fn new(driver: &'static Driver, stream: Handle) -> Self {
        Self {
            driver,
            stream,
            span: Span::default(),
            before: Span::default(),
            waits: driver.graphs.is_some(),
            graph: None,
            uses_graphs: driver.graphs.is_some(),
            #[cfg(test)]
            replays: 0,
        }
    }

    /// Launches a kernel after everything before it; `parameters` are its own, in words.
    pub fn add(
        &mut self,
        function: Handle,
        groups: [u32; 3],
        threads: u32,
        parameters: impl IntoIterator<Item = u64>,
    ) -> Result<(), Code> {
        let number = self.span.launches.len();
        let start = self.span.words.len();
        self.span.words.extend(parameters);
        let words = start..self.span.words.len();
        self.span.launches.push(Launch { function, groups, threads, words });
        let expected = self.before.launches.get(number).map(|launch| launch.function);
        if self.waits && expected == Some(function) {
            return Ok(());
        }
        let first = if self.waits { 0 } else { number };
        self.waits = false;
        self.span.launch_each(first..number + 1, self.driver, self.stream)
    }

    /// Ends the span: what waited is in the stream then.
    pub fn settle(&mut self) -> Result<(), Code> {
        let count = self.span.launches.len();
        if count == 0 {
            return Ok(());
        }
        let is_whole = count == self.before.launches.len() && count >= LEAST;
        let is_done = !self.waits || (is_whole && self.replay());
        let went = if is_done { Ok(()) } else { self.span.launch_each(0..count, self.driver, self.stream) };
        std::mem::swap(&mut self.span, &mut self.before);
        self.span.clear();
        self.waits = self.uses_graphs;
        went
    }

    /// Launches the span as a graph, if that can be.
    fn replay(&mut self) -> bool {
        let Some(calls) = self.driver.graphs.as_ref().filter(|_| self.uses_graphs) else { return false };
        let kept = self.graph.take().filter(|graph| graph.span.is_like(&self.span));
        let ready = match kept {
            Some(mut graph) => graph.update(&self.span).map(|()| graph),
            None => Graph::new(calls, &self.span),
        };
        // Sound: the graph is ready, and the stream lives.
        let launched = ready.and_then(|graph| {
            done(unsafe { (calls.launch)(graph.ready, self.stream) })?;
            Ok(graph)
        });
        self.graph = launched.ok();
        self.uses_graphs = self.graph.is_some();
        #[cfg(test)]
        {
            self.replays += usize::from(self.graph.is_some());
        }
        self.uses_graphs
    }

    /// Lets go of the graph, before what its kernels are from goes.
    pub fn forget(&mut self) {
        self.graph = None;
    }

    /// From now on kernels are launched one by one.
    #[cfg(test)]
    pub fn without_graphs(&mut self) {
        self.uses_graphs = false;
        self.waits = false;
    }
}
