package limits

import (
	"fmt"
	"strings"
	"time"
)

// Connections of programs.
const (
	Flows          = 1024
	Refusals       = 128
	Held           = 64
	HoldsPerSecond = 20
	HalfClosed     = time.Second
	Sniff          = 300 * time.Millisecond
	Polite         = 200 * time.Millisecond
	Drain          = 5 * time.Second
	Owner          = 250 * time.Millisecond
	Recheck        = time.Second
	Head           = 64 << 10
	Hello          = 64 << 10
	HelloRecords   = 2048
	Dial           = 15 * time.Second
	Stagger        = 250 * time.Millisecond
	Family         = 250 * time.Millisecond
	Addresses      = 32
	ResolverNames  = 4096
	Query          = 2 * time.Second
	KeepIdle       = 60 * time.Second
	KeepAgain      = 15 * time.Second
	KeepProbes     = 4
	EngineDials    = 8
	EngineTTL      = 2 * time.Second
)

// DNS.
const (
	DNSConns     = 64
	DNSPerSecond = 200
	DNSBurst     = 500
	DNSOnConn    = 128
	DNSBeyond    = 32
	DNSIdle      = 10 * time.Second
	Quarantine   = 10 * time.Minute
	Journal      = 16 << 20
	ListedNames  = 65536
	OtherNames   = 4096
)

// The audit log.
const (
	FoldKey   = 20
	FoldAll   = 500
	FoldNames = 1024
	Line      = 256 << 10
	Reserve   = 1 << 20
	Reports   = 1 << 20
	Sync      = 100 * time.Millisecond
)

// Connections from outside.
const (
	Inbound       = 1024
	InboundLines  = 100
	InboundFolds  = 64
	InboundTick   = time.Second
	InboundLinger = 5 * time.Second
)

// The operator's side.
const (
	Pending  = 500
	Grants   = 1000
	Uses     = 10_000
	Asking   = 64
	Body     = 64 << 10
	Answer   = 30 * time.Second
	Patience = 10 * time.Second
	Policy   = 1 << 20
	Quiet    = 100 * time.Millisecond
	Poll     = 500 * time.Millisecond
	Hold     = 5 * time.Minute
)

// The gateway's processes.
const (
	Apply      = time.Second
	MaxBackoff = 5 * time.Second
	Memory     = 256 << 20
	Tasks      = 256
	Processors = 2
)

// Limit is a row of the table.
type Limit struct {
	What  string
	Value any    // a number, or a time.Duration
	Unit  string // of a number: "bytes", ...
	Then  string // what happens at it
}

// Group is some rows that belong together.
type Group struct {
	Name   string
	Limits []Limit
}

// Table is every limit. What a policy can lower says the key.
var Table = []Group{
	{"Connections", []Limit{
		{"allowed connections at once (`egress.defaults.max_connections` lowers it)", Flows, "", "those beyond are reset, and recorded as `too-many`; a reload that lowers it cuts the youngest"},
		{"connections of one rule at once: `max_connections`", "none", "", "those beyond are refused as `too-many`; a reload that lowers it cuts the youngest"},
		{"connections of one rule in a time: `rate`", "none", "", "those beyond are refused as `too-often`; as many as the number may come at once; after a reload those that are open count"},
		{"bytes that a program sends on one connection: `max_upload`", "none", "", "the byte beyond ends the connection: `upload-limit`; after a reload what was sent before counts"},
		{"time without a byte in either direction: `idle_timeout`", "none", "", "the connection is reset: `idle`; after a reload those that are open too. Without it a server that lives and reads nothing, or a program that never ends, keeps its place among the connections"},
		{"connections that wait for the operator at once", Held, "", "those beyond are refused"},
		{"connections that begin to wait in a second", HoldsPerSecond, "", "those beyond are refused; as many as may wait may come at once"},
		{"time between looks whether a program that shut its half, and waits, is there", HalfClosed, "", "one that is gone is `cancelled`; one that closes is at once"},
		{"time that a connection waits for the operator: `egress.defaults.hold`", Hold, "", "it is refused; the policy may say less"},
		{"refused connections that are answered politely at once", Refusals, "", "those beyond are reset at once, and recorded"},
		{"time for a refused program to show its protocol", Sniff, "", "it is reset"},
		{"time for a refused program to read the answer", Polite, "", "the connection is closed"},
		{"time for a server to finish its answers before a refused request", Drain, "", "both ends are reset"},
		{"time to learn whose a connection is, where a rule has `binaries`", Owner, "", "it is nobody's, and no such rule allows it"},
		{"head of an HTTP request", Head, "bytes", "`malformed`: 400, or the connection ends"},
		{"ClientHello of TLS", Hello, "bytes", "`malformed`"},
		{"records that a ClientHello is spread over", HelloRecords, "", "`malformed`"},
		{"time after which rules that end by the clock are looked at again", Recheck, "", "a clock that was set is noticed, and what has ended is cut"},
	}},
	{"Servers", []Limit{
		{"time for a server to answer, over all of its addresses", Dial, "", "the connection fails: 502, or a reset"},
		{"delay before the next address is tried as well", Stagger, "", "the first that answers is taken"},
		{"time that a name's IPv4 addresses wait for its IPv6 ones", Family, "", "what is there is tried; what comes later is for the next connection"},
		{"addresses of one name", Addresses, "", "more are ignored"},
		{"names that are remembered", ResolverNames, "", "what has expired is forgotten, then any"},
		{"questions to the engine's resolver at once", EngineDials, "", "the name servers alone are asked"},
		{"time that an answer of the engine's resolver counts", EngineTTL, "", "it is asked again"},
		{"time for one name server to answer", Query, "", "the next is asked, each twice"},
		{"time before a silent server is probed, since the program's probes end at the gateway", KeepIdle, "", "it is probed again"},
		{"time before it is probed again", KeepAgain, "", "at the fourth without an answer it is gone; with bytes under way, when the kernel gives up (some 15 minutes)"},
	}},
	{"DNS", []Limit{
		{"questions a second", DNSPerSecond, "", "those beyond are dropped; clients ask again"},
		{"questions at once", DNSBurst, "", "those beyond are dropped"},
		{"questions over UDP that wait for a name server", DNSBeyond, "", "those beyond are dropped; clients ask again"},
		{"connections that carry DNS", DNSConns, "", "those beyond are reset"},
		{"questions on one connection", DNSOnConn, "", "it is closed"},
		{"time between questions on one connection", DNSIdle, "", "it is closed"},
		{"listed names with an address of their own", ListedNames, "", "more share the addresses of unlisted names"},
		{"unlisted names with an address", OtherNames, "", "SERVFAIL, until one is free again"},
		{"time that an unlisted name keeps its address unused", Quarantine, "", "it may go to another name"},
		{"journal of names", Journal, "bytes", "it is made short again; where that cannot be, names without an address get none: SERVFAIL"},
	}},
	{"Audit log", []Limit{
		{"refusals of one host and port a second", FoldKey, "", "those beyond are one line with a count"},
		{"refusals a second", FoldAll, "", "those beyond are one line with a count for each host and port"},
		{"hosts and ports that are told apart while counting", FoldNames, "", "those beyond share one line"},
		{"reports of refused packets (UDP, ICMP and more) that wait for the gateway", Reports, "bytes", "those beyond are refused all the same; a line says how many they were"},
		{"log of one sandbox: `audit: {max_size, keep}` in the settings", "none", "", "it goes on in another file, and the oldest is removed: `keep` + 1 times `max_size` at the most, and 1 MiB"},
		{"logs of sandboxes that have ended", "none", "", "they stay until `nemoclawctl audit prune` removes what is older than a time, or beyond a size"},
		{"line", Line, "bytes", "its connection is refused"},
		{"room that is kept on the disk", Reserve, "bytes", "without room every connection is refused: `unrecorded`"},
		{"time that a line may be in the kernel only", Sync, "", "it is brought to the disk"},
	}},
	{"Connections from outside", []Limit{
		{"connections that have lines of their own at once", Inbound, "", "those beyond are lines with a count, and pass all the same: the policy's `network.ingress` decides about them, and the container's own limits"},
		{"such connections that begin in a second", InboundLines, "", "those beyond are one line with a count for each port, and so are their ends, with the bytes of all"},
		{"that find nobody, in a second", FoldKey, "", "those beyond are one line with a count for each port"},
		{"that `network.ingress` refuses in a second, of TCP and of UDP each", FoldKey, "", "those beyond are one line with a count"},
		{"ports that are told apart while counting", InboundFolds, "", "those beyond share one line"},
		{"time after the end of a connection of TCP before its last line", InboundLinger, "", "its last packets are in it; what comes later is refused"},
		{"time after which what was counted is a line", InboundTick, "", "so is what the kernel says it could not tell us"},
	}},
	{"Operators", []Limit{
		{"hosts and ports that are pending", Pending, "", "the one that was tried longest ago is forgotten"},
		{"decisions that hold", Grants, "", "those that are used up make room; then no more are taken"},
		{"uses of one approval", Uses, "", "more are not understood"},
		{"operators that are answered at once", Asking, "", "those beyond are sent away: 503"},
		{"size of what an operator says", Body, "bytes", "it is not understood"},
		{"time to say it, and to read the answer", Answer, "", "the conversation ends"},
		{"time for a reader of events to take one line", Patience, "", "he is dropped, and may ask again from where he was"},
		{"policy file", Policy, "bytes", "it is a fault; what was in force stays"},
		{"quiet after a write in place before it is read", Quiet, "", "a rename or a close is read at once"},
		{"time between looks at a file whose changes the kernel does not report", Poll, "", "it is read if it is another"},
	}},
	{"The gateway", []Limit{
		{"time for the worker to put rules into force", Apply, "", "it is killed; all connections end, and the next one begins with the rules"},
		{"pause before a worker that keeps failing is started again", MaxBackoff, "", "connections wait in the listeners' queues"},
		{"memory of monitor and worker", Memory, "bytes", "the kernel ends the worker first; another is started"},
		{"threads of monitor and worker", Tasks, "", "no more are made"},
		{"open files of each", "those of who starts it", "", "there are fewer connections at once; those beyond are `too-many`"},
		{"processors that both may use", Processors, "", "they wait"},
	}},
}

// Markdown returns the table as a document.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Limits of the gateway\n\nMade from egress/limits by `make golden`. Each is for one gateway: one sandbox, or the containers of one pod.\n")
	for _, g := range Table {
		fmt.Fprintf(&b, "\n## %s\n\n| what | limit | what happens at it |\n|---|---|---|\n", g.Name)
		for _, l := range g.Limits {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", l.What, l.value(), l.Then)
		}
	}
	return b.String()
}

// value writes a value as people do: 64 KiB, 300ms, 10,000.
func (l Limit) value() string {
	n, ok := l.Value.(int)
	switch {
	case !ok:
		text := fmt.Sprint(l.Value)
		if strings.HasSuffix(text, "m0s") {
			return strings.TrimSuffix(text, "0s")
		}
		return text
	case l.Unit == "bytes" && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case l.Unit == "bytes":
		return fmt.Sprintf("%d KiB", n>>10)
	}
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
