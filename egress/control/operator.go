package control

import "time"

// The operator's conversation is HTTP/1.1 with JSON on control.sock, mode
// 0600; the peer's uid and pid (SO_PEERCRED) are recorded with what it decides.
//
//	GET  /v1/status               Status
//	GET  /v1/pending              []Pending, the latest last
//	GET  /v1/grants               []Grant
//	POST /v1/decisions   Decision answers Decided
//	POST /v1/reload               answers Reloaded
//	GET  /v1/events?after=SEQ     audit lines as NDJSON, then as they come
//	GET  /metrics                 counters in Prometheus' text format
//
// A fault is answered with a 4xx or 5xx status and Fault.

// Status tells what the gateway of one sandbox is doing, at the time of asking.
type Status struct {
	ID         string    `json:"id"`
	Monitor    int       `json:"monitor_pid"`
	Worker     int       `json:"worker_pid"` // 0: none is ready; one starts with the next connection
	Restarts   int       `json:"restarts"`   // of the worker
	Since      time.Time `json:"since"`
	Policy     string    `json:"policy"` // name
	PolicyFile string    `json:"policy_file,omitempty"`
	Digest     string    `json:"digest"`     // sha256 of the policy in force
	Generation uint64    `json:"generation"` // of the rules in force
	// PolicyFault is why the file as it stands is not in force; several lines.
	PolicyFault string   `json:"policy_fault,omitempty"`
	Links       []string `json:"links"` // interfaces of the uplink
	Open        int      `json:"open"`  // connections passing now
	Allowed     uint64   `json:"allowed"`
	Refused     uint64   `json:"refused"`
	AuditLog    string   `json:"audit_log"`
	AuditLines  uint64   `json:"audit_lines"`           // number of its last line
	AuditFault  string   `json:"audit_fault,omitempty"` // why it cannot be written: everything is refused
	// AuditDisturbed is how often somebody else was found to have moved, cut off,
	// removed or written to the log since the gateway began; the notes tell of it.
	AuditDisturbed int      `json:"audit_disturbed,omitempty"`
	Notes          []string `json:"notes,omitempty"`
	Denials        Denials  `json:"denials"`
}

// Denials tells how much of what the kernel refuses to the sandbox's programs
// is seen.
type Denials struct {
	Landlock string `json:"landlock"` // "observable", or why not and what to do
	Seccomp  string `json:"seccomp"`  // likewise
	Recorded int    `json:"recorded"` // lines of the log
	Folded   int    `json:"folded"`   // more, in lines with a count
	// Missed are records of this machine, of any program, that found no room
	// on their way since the sandbox began.
	Missed int `json:"missed"`
	// Unknown are denials of processes of this machine that had ended before
	// it could be told whose they were.
	Unknown int `json:"unknown"`
}

// Observable is said of a layer whose denials are seen.
const Observable = "observable"

// Pending is a host and port that were refused, or wait, and are not yet decided
// upon.
type Pending struct {
	N       uint64    `json:"n"` // names the entry for as long as it is one
	Host    string    `json:"host"`
	Port    uint16    `json:"port"`
	Reason  string    `json:"reason"`
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Request string    `json:"request"` // of the latest attempt
	Process *Process  `json:"process,omitempty"`
	// Waiting connections are let through if they are approved before Until.
	Waiting int        `json:"waiting,omitempty"`
	Until   *time.Time `json:"until,omitempty"` // of the latest
	// Cancelled tells that the latest attempt waited, and that its program went
	// away before it was decided.
	Cancelled bool `json:"cancelled,omitempty"`
}

// Verbs of a Decision that stands in the policy file.
const (
	Permanent     = "permanent"      // approved
	PermanentDeny = "permanent-deny" // denied
)

// Decision is an operator's word about a host and port.
type Decision struct {
	// Verb is "approve", "deny", "revoke", or Permanent or PermanentDeny, which
	// only record that the policy file was changed.
	Verb string `json:"verb"`
	Host string `json:"host,omitempty"`
	Port uint16 `json:"port,omitempty"`

	// Of approve; none of them: until the sandbox ends.
	Once    bool          `json:"once,omitempty"`    // one connection
	Request string        `json:"request,omitempty"` // with Once: the one that was shown
	Uses    int           `json:"uses,omitempty"`    // so many
	For     time.Duration `json:"for,omitempty"`     // nanoseconds

	Grant uint64 `json:"grant,omitempty"` // with revoke, in place of host and port
	File  string `json:"file,omitempty"`  // with permanent: the file that was changed
}

// Decided answers a Decision: the rules of Generation are in force.
type Decided struct {
	Generation uint64 `json:"generation"`
	Grant      Grant  `json:"grant"`             // that was given or revoked
	Cut        int    `json:"cut,omitempty"`     // connections ended because of it
	Warning    string `json:"warning,omitempty"` // e.g. a deny rule still beats the approval
}

// Reloaded answers a reload.
type Reloaded struct {
	Generation uint64 `json:"generation"`
	Changed    bool   `json:"changed"`
	Cut        int    `json:"cut"`
}

// Fault is an error told over HTTP.
type Fault struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}
