package control

import "time"

// The runtime's conversation with the monitor. The first one takes place on
// descriptor 3 of a monitor that create has just started:
//
//	[ nemoclaw create ]                       [ monitor ]
//	attach{…} + inner, uplink namespaces  ──▶ opens the audit log and the
//	                                          listeners: connections queue
//	                                      ◀── ready | fault{text}
//	commit{…} + init's pidfd, the ruleset ──▶ from here on it lives as long
//	                                          as init
//	                                      ◀── ok | fault{text}
//
// If create goes away before commit, the monitor undoes what it did and ends.
// Later ones are on runtime.sock, one request each:
//
//	join{…} + the namespace, init's pidfd, the ruleset
//	           ──▶  ok: one more container lives behind the gateway | fault{text}
//	started{}  ──▶  ok: who decides a connection, knows the uplink | fault{text}
//	ruleset{}  ──▶  ok + the container's filled Landlock ruleset | fault{text}
//	leave{}    ──▶  ok, others: how many containers the gateway still has
//
// The delete of the last container sends SIGTERM through a pidfd; the monitor
// closes the audit log's chain and ends.

// ToMonitor is a request of the runtime; exactly one field is set.
type ToMonitor struct {
	Attach  *Attach  `json:"attach,omitempty"`
	Commit  *Commit  `json:"commit,omitempty"`
	Join    *Join    `json:"join,omitempty"`
	Leave   *Leave   `json:"leave,omitempty"`
	Started *Started `json:"started,omitempty"`
	Ruleset *Ruleset `json:"ruleset,omitempty"`
}

// Attach hands a namespace to a new monitor. Descriptors: the inner network
// namespace, then the uplink's.
type Attach struct {
	ID          string   `json:"id"`
	Root        string   `json:"root"`
	PolicyName  string   `json:"policy_name"`
	PolicyFile  string   `json:"policy_file"`          // watched; empty: never reloaded
	Policy      []byte   `json:"policy"`               // what create parsed, byte for byte
	Latest      []byte   `json:"latest,omitempty"`     // the policy last in force, if not that of create; the monitor's to say
	AuditLog    string   `json:"audit_log"`            // opened for append, made if missing
	Rotation    Rotation `json:"rotation"`             // of the audit log
	Nameservers []string `json:"nameservers"`          // addresses the worker asks, in order
	EngineDNS   bool     `json:"engine_dns,omitempty"` // the engine's resolver inside the namespace may be asked, if there is one
	Search      []string `json:"search"`               // the container's search domains
	Hosts       []Host   `json:"hosts,omitempty"`      // of the hosts file that the engine made for the container
	HostUplink  bool     `json:"host_uplink"`          // the uplink is the host's own namespace
	OwnUplink   bool     `json:"own_uplink"`           // the uplink was made for this sandbox: its links end with it
	// Namespace is the path of a network namespace that was there before the
	// sandbox and outlives it: the uplink's links go back to it. Empty: it
	// ends with the sandbox.
	Namespace    string `json:"namespace,omitempty"`
	CgroupParent string `json:"cgroup_parent,omitempty"`
	// Notes are what the runtime did that an auditor wants to know: a layer
	// weakened by the policy, a capability cut. One line of the log each.
	Notes []string `json:"notes,omitempty"`
}

// Rotation says when the audit log goes on in another file; zero: never.
type Rotation struct {
	Size int64         `json:"size,omitempty"` // bytes
	Age  time.Duration `json:"age,omitempty"`  // nanoseconds
	Keep int           `json:"keep,omitempty"` // older files; 0: all
}

// Box names a container: ids are unique only within a root.
type Box struct {
	ID   string `json:"id"`
	Root string `json:"root"`
}

// Join puts one more container behind a gateway, in the namespace that it
// serves. The container must have the same rules of egress and network.
// Descriptors: the network namespace, init's pidfd, then the filled Landlock
// ruleset, as in Commit.
type Join struct {
	Box
	InitPID int `json:"init_pid"` // in the monitor's pid namespace
	// Again: a monitor before this one has taken the container in.
	Again      bool     `json:"again,omitempty"`
	PolicyName string   `json:"policy_name"`
	PolicyFile string   `json:"policy_file"`
	Policy     []byte   `json:"policy"`
	Notes      []string `json:"notes,omitempty"`
}

// Leave says that a container has ended.
type Leave struct{ Box }

// Commit makes an attached monitor the container's. Descriptors: init's
// pidfd, then the filled Landlock ruleset, which every confined container has.
// A monitor that got none hands none out, and exec makes the rules anew.
type Commit struct {
	InitPID int `json:"init_pid"` // in the monitor's pid namespace
	// Again is set for a monitor that takes the place of one that was lost: it
	// serves the container Box, which need not be the one that brought the
	// gateway up.
	Again *Box     `json:"again,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

// Started says that the program is about to run.
type Started struct {
	// Links are the interfaces that lead out, by name; none: no uplink, and
	// every connection is refused for that reason.
	Links []string `json:"links"`
	// Entered says that somebody may come in by the engine's interfaces, which
	// may be all that they are for: none of Links.
	Entered bool `json:"entered,omitempty"`
}

// Ruleset asks for a container's filled ruleset.
type Ruleset struct{ Box }

// FromMonitor answers; Fault is empty unless the request failed.
type FromMonitor struct {
	Fault  string `json:"fault,omitempty"`
	Others int    `json:"others,omitempty"` // of Leave: containers that the gateway still has
}
