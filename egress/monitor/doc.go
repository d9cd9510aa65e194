// Package monitor is the trusted half of a sandbox's gateway: it owns the
// listeners, the namespaces, the policy file, the operator's decisions and the
// audit log, has a worker do the rest, and lives exactly as long as the
// container's init. It never reads a byte that an agent sends: what the worker
// reports is copied into JSON strings and nothing else.
//
// # Why two processes
//
// Names, requests and handshakes are parsed in the worker, which holds no file
// and no privilege. It is started when the first connection or question waits in
// the listeners that the monitor holds: a sandbox that does no networking has
// none. If it dies, connections queue there, and the next worker takes them up:
// none is refused, none passes unchecked. Where none can be started they are
// reset, unread. If the monitor dies the listeners close, and everything is
// refused.
//
// # Order
//
// A decision is in the audit log before the worker hears that it is (Written),
// and an operator is answered only once the worker says that the rules are in
// force (Applied); without a worker nothing passes, and they are at once. A worker
// that does not put new rules into force within applyWait is killed: what they
// revoke is cut in any case.
package monitor
