// Package runtime turns a bundle into a confined, running container: create,
// start, exec, kill, delete, over libcontainer, which nobody else imports. It
// decides nothing about policies (specs does) and knows nothing of connections
// (the gateway does); it opens descriptors, hands them over, and undoes what it
// did when a step fails.
//
// # How a program is confined
//
// A container's args[0] is /proc/self/fd/N, the launcher, a sealed memfd. It
// finds behind it a plan, a Landlock ruleset and a canary (seal.go). The
// ruleset is filled only when init stands in its final mount namespace, so
// rules name what the program will really see (grant.go).
//
//	create  bundle ─ policy ─ refuse? ─ edits ─┬─ libcontainer: init up to its fifo
//	                                           └─ fence, uplink, gateway  (in the meantime)
//	        rules ─ program found? ─ plan sealed ─ engine's cable moved ─ gateway committed
//	start   cable moved ─ namespace verified ─ gateway deciding ─ fifo opened
//	exec    stored policy ─ ruleset from the monitor ─ plan sealed ─ libcontainer
//
// Layer 2 is two filters. An engine's profile is loaded by libcontainer, its
// stand-in where there is none by the launcher, and ours by the launcher, last.
//
// # Why nothing is degraded
//
// Each step that fails ends the container: a layer that could not be put up is
// never left out. What a policy weakens on purpose is a note in the audit log.
package runtime
