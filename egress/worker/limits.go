package worker

import (
	"time"

	"nemoclaw/egress/limits"
)

// Everything that an agent could exhaust, and what happens at the limit: those
// that concern whoever runs a sandbox stand in egress/LIMITS.md.
const (
	// maxFlows is how many allowed connections are open at once. Those beyond
	// are reset, and recorded as too-many.
	maxFlows = limits.Flows
	// maxRefusals is how many refused connections wait for a polite answer.
	// Those beyond are reset at once; they are recorded all the same.
	maxRefusals = limits.Refusals
	// maxHeld is how many connections wait for the operator at once. Those
	// beyond are refused.
	maxHeld = limits.Held
	// holdsPerSecond is how many may begin to. Those beyond are refused.
	holdsPerSecond = limits.HoldsPerSecond
	// leftAgain is the time between questions whether a program that has no more
	// to say is still there to hear the answer.
	leftAgain = limits.HalfClosed
	// recheckTime is how long the clock may have been set to another time before
	// rules that end by it are looked at again.
	recheckTime = limits.Recheck
	// maxDNSConns is how many TCP connections carry DNS. Those beyond are
	// reset.
	maxDNSConns = limits.DNSConns

	// maxHead is the size of a request's head in bytes, and of a response's
	// where it matters. A longer one is malformed: 400, or the connection ends.
	maxHead = limits.Head
	// maxHello is the size of a ClientHello with its record headers, in bytes.
	// A longer one is malformed.
	maxHello = limits.Hello
	// maxRecords is how many TLS records a ClientHello may be spread over: it is
	// read anew whenever bytes come. More are malformed.
	maxRecords = limits.HelloRecords

	// sniffTime is how long a refused connection may take to show which
	// protocol it speaks; after that it is reset. An allowed one may take for
	// ever: no check ends by a timeout.
	sniffTime = limits.Sniff
	// politeTime is how long a refused program may take to read the answer.
	politeTime = limits.Polite
	// drainTime is how long a server may take to finish the answers to a
	// connection whose next request was refused; after that it is reset.
	drainTime = limits.Drain
	// whoTime is how long a decision waits to learn which process asks. After
	// that it is recorded without.
	whoTime = limits.Owner
	// dialTime is how long the far end may take to answer, over all of its
	// addresses; then the connection fails.
	dialTime = limits.Dial
	// staggerTime is the delay before the next address is tried beside the
	// one that has not answered (RFC 8305, section 5).
	staggerTime = limits.Stagger

	// familyTime is how long a name's IPv4 addresses wait for its IPv6 ones.
	familyTime = limits.Family

	// maxAddrs is how many addresses of a name are considered; more are
	// ignored.
	maxAddrs = limits.Addresses
	// maxNames is how many names the resolver remembers; at the limit it
	// forgets what has expired, then any.
	maxNames = limits.ResolverNames
	// minTTL and maxTTL bound how long it does, whatever the answer says;
	// badTTL is for names that have no address.
	minTTL, maxTTL, badTTL = time.Second, 300 * time.Second, 2 * time.Second
	// engineTTL is how long an address counts that an engine's resolver told:
	// it is another container's the moment that one ends.
	engineTTL = limits.EngineTTL
	// queryTime is how long one nameserver may take before the next is asked;
	// each is asked queryRounds times.
	queryTime   = limits.Query
	queryRounds = 2

	// foldKey and foldAll are how many refusals a second are recorded one by
	// one, for one host and port and for all. Those beyond become one record
	// with a count.
	foldKey, foldAll = limits.FoldKey, limits.FoldAll
	// maxFolds is how many hosts and ports are told apart while folding;
	// those beyond share one record.
	maxFolds = limits.FoldNames
	// maxBatch is the size of one message of records, estimated, in bytes.
	maxBatch = 64 << 10
	// maxIdle is for how many records room is kept when none wait.
	maxIdle = 256
	// noteDelay is how long a record that nobody waits for may wait for company.
	noteDelay = 5 * time.Millisecond
	// maxDetail is the length of a record's detail in bytes; the rest is cut.
	maxDetail = 256

	// copySize is the size of the buffer that a connection holds while bytes
	// pass through it, and only then.
	copySize = 16 << 10
	// spliceAfter is how many bytes go through that buffer before the kernel
	// moves the rest (splice(2)): that is faster, but holds a pipe even while
	// nothing moves.
	spliceAfter = 256 << 10
)
