// Package worker is the half of the gateway that touches what the agent sends:
// it answers DNS, accepts the connections that the namespace steers to it,
// decides each by the rules in force, has the decision recorded, and relays.
// It opens no file and reads none after its start, keeps no privilege, executes
// nothing, and passes no byte of a connection whose record is not written.
//
// The life of a connection:
//
//	accept → name → decide → first bytes → record → resolve → dial → relay → record
//	                  │           │           │         │
//	                  └───────────┴───────────┴─────────┴──▶ refuse → record
//
// # Why
//
// A process of its own: what parses strangers' bytes holds no listener's
// address, no namespace and no log, so its crash loses live connections and
// nothing else. What a program sent as HTTP is never forwarded as it came but
// written anew from what was understood, so that no server can understand it
// differently. On ports other than 80 and 443 any protocol passes; there a
// ClientHello is checked whenever it comes, while the server's bytes already
// flow, because servers of many protocols speak first.
package worker
