package control

import (
	"net/netip"
	"time"
)

// The monitor's conversation with its worker, on the worker's descriptor 3:
//
//	[ monitor ]                               [ worker ]
//	setup{…} + listeners, names journal   ──▶ serves DNS and connections
//	rules{…}                              ──▶ decides by these from now on,
//	                                          cuts what they no longer allow
//	                                      ◀── applied{generation, cut}
//	                                      ◀── who{n, src, dst}, if a rule asks for the owner
//	process{n, …}                         ──▶
//	                                      ◀── use{n, grant}, if a grant counts
//	used{n | fault}                       ──▶ only now is it one's own
//	                                      ◀── engine{n}, to ask the engine's resolver
//	dialed{n | fault} + the connection    ──▶
//	                                      ◀── records{[n, …]}
//	written{n | fault}                    ──▶ only now may bytes pass
//	count{}                               ──▶
//	                                      ◀── counted{dns}, for whoever graphs it
//
// A worker is started when something waits in the listeners' queues; there it
// stays until the first rules. If either side ends, the other notices by the end
// of the conversation: the worker exits, the monitor starts another when it is
// needed.

// ToWorker is what the monitor says; exactly one field is set.
type ToWorker struct {
	Setup   *Setup   `json:"setup,omitempty"`
	Rules   *Rules   `json:"rules,omitempty"`
	Process *Whois   `json:"process,omitempty"`
	Used    *Used    `json:"used,omitempty"`
	Written *Written `json:"written,omitempty"`
	Count   *Count   `json:"count,omitempty"`
	Dialed  *Dialed  `json:"dialed,omitempty"`
}

// Count asks for Counted.
type Count struct{}

// Setup gives the worker its descriptors, in this order: TCP steered over
// IPv4, TCP steered over IPv6, DNS over UDP 4, UDP 6, TCP 4, TCP 6, the socket
// on which the kernel reports packets that the fence refuses (NFLOG), and the
// journal of names, open for reading and appending.
type Setup struct {
	ID          string         `json:"id"`
	Nameservers []string       `json:"nameservers"`
	Search      []string       `json:"search"`
	Hosts       []Host         `json:"hosts,omitempty"`
	Proxy       *Proxy         `json:"proxy,omitempty"` // nil: connections go straight
	HostUplink  bool           `json:"host_uplink"`
	EngineDNS   bool           `json:"engine_dns,omitempty"` // the engine\'s resolver inside may be asked, if there is one: Engine
	Never       []netip.Prefix `json:"never,omitempty"`      // more that is never reachable
}

// Host is a line of a hosts file: what a program dials there, it means by name.
type Host struct {
	Addr  netip.Addr `json:"addr"`
	Names []string   `json:"names"` // in normal form
}

// Proxy is by which every connection of a sandbox goes (RFC 9110, 9.3.6).
type Proxy struct {
	Host string `json:"host"` // normal form, or an address
	Port uint16 `json:"port"`
	Auth string `json:"auth,omitempty"` // "user:password", a secret
}

// SetupFiles is the number of descriptors that come with Setup.
const SetupFiles = 8

// ReportsFile is the place of the kernel's reports among them.
const ReportsFile = 6

// Rules is all that the worker decides by. It replaces what came before.
type Rules struct {
	Generation uint64  `json:"generation"` // rises with every change, from 1
	File       string  `json:"file"`       // named in records, as file:line
	Policy     []byte  `json:"policy"`     // parsed by the worker itself
	Grants     []Grant `json:"grants"`
	// NoUplink is set while no interface leads out: everything is refused.
	NoUplink bool `json:"no_uplink"`
	// Began is when each rule with a ttl came into force first, by its Key.
	Began map[string]Uptime `json:"began,omitempty"`
}

// Grant is an operator's decision about one host and port. It ends with the
// sandbox, if not before, and never overrides the policy's deny rules, the
// never-list or the check of private addresses.
type Grant struct {
	ID    uint64    `json:"id"`   // from 1; never given twice to one sandbox
	Host  string    `json:"host"` // normal form, or an IP address
	Port  uint16    `json:"port"`
	Allow bool      `json:"allow"` // false: denied and muted
	By    string    `json:"by"`    // who decided: uid and pid of the peer
	Since time.Time `json:"since"`

	// Counted is set for an approval of so many connections: Uses are left.
	// The monitor alone takes one away, before the connection passes.
	Counted bool `json:"counted,omitempty"`
	Uses    int  `json:"uses,omitempty"`
	// Request, of a Counted one, is the connection that was shown to the
	// operator: while that waits, the use is its alone.
	Request string `json:"request,omitempty"`
	// Until is when the grant ends; 0: with the sandbox.
	Until Uptime `json:"until,omitempty"`
}

// Ended tells whether a grant counts no more at the time now.
func (g *Grant) Ended(now Uptime) bool { return g.Until != 0 && now >= g.Until }

// Spent tells whether nothing of a counted grant is left.
func (g *Grant) Spent() bool { return g.Counted && g.Uses <= 0 }

// Whois answers Who with the same N.
type Whois struct {
	N       uint64   `json:"n"`
	Process *Process `json:"process,omitempty"` // nil: not found
	Gone    bool     `json:"gone,omitempty"`    // nobody holds the program's end any more
}

// Process is who opened a connection.
type Process struct {
	// Unsure is why this may be another process than the one that connected;
	// empty: it is the one. A rule that names programs is not satisfied by an
	// owner of whom one is not sure.
	Unsure    string   `json:"unsure,omitempty"`
	PID       int      `json:"pid"`                 // in the host's pid namespace
	Container string   `json:"container,omitempty"` // id, of those behind the gateway; empty: none of them
	Name      string   `json:"name"`
	Exe       string   `json:"exe"`
	UID       uint32   `json:"uid"`
	Ancestors []string `json:"ancestors,omitempty"` // executables, nearest first
}

// Written answers Records: those up to and including N are in the log. If
// Fault is set they are not, and their connections must be refused.
type Written struct {
	N     uint64 `json:"n"`
	Fault string `json:"fault,omitempty"`
}

// ToMonitorFromWorker is what the worker says; exactly one field is set.
type ToMonitorFromWorker struct {
	Applied *Applied `json:"applied,omitempty"`
	Who     *Who     `json:"who,omitempty"`
	Use     *Use     `json:"use,omitempty"`
	Records *Records `json:"records,omitempty"`
	Counted *Counted `json:"counted,omitempty"`
	Engine  *Engine  `json:"engine,omitempty"`
}

// Engine asks for a connection to the resolver that the engine keeps inside the
// sandbox's namespace, for one question.
type Engine struct {
	N uint64 `json:"n"`
}

// Dialed answers Engine with the same N, and brings the connection unless Fault
// says why there is none.
type Dialed struct {
	N     uint64 `json:"n"`
	Fault string `json:"fault,omitempty"`
}

// Counted is what a worker has counted since its start.
type Counted struct {
	DNS map[string]uint64 `json:"dns"` // questions, by the answer: "NOERROR", "NXDOMAIN"; "dropped": none
}

// Applied says that the Rules of a generation are in force.
type Applied struct {
	Generation uint64 `json:"generation"`
	Cut        int    `json:"cut"`             // connections ended because of them
	Fault      string `json:"fault,omitempty"` // not applied, and why
}

// Who asks which process in the inner namespace owns a TCP connection.
type Who struct {
	N   uint64         `json:"n"`
	Src netip.AddrPort `json:"src"`
	Dst netip.AddrPort `json:"dst"` // as the program dialed it
}

// Use asks for one use of a counted grant. It is gone once Used says so,
// whatever becomes of the connection.
type Use struct {
	N       uint64 `json:"n"`
	Grant   uint64 `json:"grant"`
	Request string `json:"request"`
}

// Used answers Use with the same N.
type Used struct {
	N     uint64 `json:"n"`
	Fault string `json:"fault,omitempty"` // there is none to be had, and why
}

// Records are decisions to be written. N is the number of the last; numbers
// rise by one from 1 for each worker.
type Records struct {
	N    uint64   `json:"n"`
	List []Record `json:"list"`
}

// Record is one decision, or the end of a connection. The monitor adds the
// time, the sequence number and the hash chain when it writes the line.
type Record struct {
	Verdict    Verdict        `json:"verdict"`
	Proto      string         `json:"proto"`          // "tcp", "tls", "http", "dns", or that of a refused packet: ProtoName
	Host       string         `json:"host,omitempty"` // normal form; what the program asked for
	Port       uint16         `json:"port,omitempty"`
	Addr       netip.AddrPort `json:"addr"` // what was dialed, or would have been
	Src        netip.AddrPort `json:"src"`  // the program's end
	Dst        netip.AddrPort `json:"dst"`  // where the program dialed, or sent it; invalid: a question in a datagram, to whatever server
	Reason     string         `json:"reason,omitempty"`
	Would      string         `json:"would,omitempty"`  // with Allow: what it would be refused for, were it enforced
	Detail     string         `json:"detail,omitempty"` // for people; escaped by the log
	Rule       string         `json:"rule,omitempty"`   // file:line, "grant", "built-in"
	Generation uint64         `json:"generation"`
	Request    string         `json:"request"`          // joins the lines of one connection; shown in refusals
	Method     string         `json:"method,omitempty"` // plain HTTP only
	Sent       int64          `json:"sent,omitempty"`   // bytes from the program, at the end
	Got        int64          `json:"got,omitempty"`    // bytes to the program, at the end
	Lasted     time.Duration  `json:"lasted,omitempty"` // nanoseconds
	Process    *Process       `json:"-"`                // the monitor's to find out; nil: it could not
	Count      int            `json:"count,omitempty"`  // refusals folded into this line
}

// Verdict is what became of an attempt.
type Verdict string

// The verdicts. Allow and Refuse are decisions; End and Cut close an allowed
// connection; Fail is an allowed one whose far end could not be reached.
const (
	Allow  Verdict = "allow"
	Refuse Verdict = "refuse"
	End    Verdict = "end"
	Cut    Verdict = "cut"
	Fail   Verdict = "fail"
	Hold   Verdict = "hold" // it waits for the operator
)
