package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An attack on the network's layers, and where it is tried. Its tests are
// "PACKAGE NAME", or "PACKAGE NAME: WORDS" where WORDS stand in the test's file:
// the row of a table that must not get lost. What no test can stop is a limit:
// words of the threat model that say so.
type attack struct {
	number int
	what   string
	tests  []string
	limit  string
}

// attacks is every attack on layers 3 and 4 that we know of. The numbers never
// change; new ones are added at the end.
var attacks = []attack{
	{1, "a connection to an address", []string{"egress/worker TestRefusals: direct-address", "egress/worker TestDirectAddressHint", "integration TestLaw6RevokedConnectionsAreCut: direct-address"}, ""},
	{2, "another name in the ClientHello than the one that was allowed", []string{"egress/worker TestScreenHello: another name", "egress/worker TestScreenHello: no name", "integration TestLaw6RevokedConnectionsAreCut: name-mismatch"}, ""},
	{3, "domain fronting: another Host inside TLS", nil, "by a different `Host` inside the encrypted connection"},
	{4, "a name encrypted in the ClientHello", []string{"egress/worker TestScreenHello: an encrypted name", "egress/dns TestAnswers: TypeHTTPS"}, "by a different `Host` inside the encrypted connection"},
	{5, "another host in plain HTTP: Host, absolute form, twice, later", []string{"egress/worker TestHTTPRequests: the second is for another", "egress/worker TestHTTPRequests: two Hosts", "egress/worker TestHTTPRequests: absolute form of another", "egress/worker TestHTTPRequests: userinfo", "integration TestClients: pipelined"}, ""},
	{6, "HTTP/2: another authority on a connection", []string{"egress/worker TestHTTPRequests: HTTP/2"}, "TLS is passed through"},
	{7, "request smuggling", []string{"egress/worker TestHTTPRequests: smuggled behind both lengths", "egress/worker TestHTTPRequests: a folded field", "egress/worker TestHTTPRequests: lines without CR", "egress/worker TestHTTPRequests: an unknown coding", "egress/worker TestHTTPRequests: pipelined behind a refused one", "egress/worker TestHTTPRequests: a list of codings", "egress/worker TestHTTPRequests: extensions and trailers", "egress/worker FuzzParseHead"}, ""},
	{8, "CONNECT", []string{"egress/worker TestHTTPRequests: CONNECT"}, ""},
	{9, "WebSocket to change the protocol", []string{"egress/worker TestWebSocket", "egress/worker TestHTTPRequests: upgrade to HTTP/2", "integration TestClients: a WebSocket"}, ""},
	{10, "data in the names of questions", []string{"integration TestLaw5NoUnlistedQuestionLeaves", "egress/dns TestAnswers: secret.tunnel.example."}, "Leak a little through names below a wildcard"},
	{11, "DNS over TLS, over HTTPS", []string{"integration TestLaw5NoUnlistedQuestionLeaves: :853", "egress/dns TestAnswers: use-application-dns.net."}, ""},
	{12, "the engine's resolver on 127.0.0.11", []string{"integration TestLaw5NoUnlistedQuestionLeaves: ask tcp 127.0.0.11:53", "integration/engines TestAgentReachesOnlyWhatIsListed"}, ""},
	{13, "a name that changes its address after it was checked", []string{"egress/worker TestLastWord", "egress/worker TestAnswersAreKept", "integration TestLaw6RevokedConnectionsAreCut: rebound.example"}, ""},
	{14, "a name that lies on a private or special address", []string{"egress/worker TestClassify", "egress/worker TestGuard", "egress/worker TestAddressesOfAllowedNames", "integration TestLaw6RevokedConnectionsAreCut: forbidden-address"}, ""},
	{15, "addresses in other spellings", []string{"specs/policy TestNormalHost: 0177.0.0.01", "egress/dns TestAnswers: 0x7f000001.", "integration TestLaw4NothingLeavesButThroughTheGateway: 2886795266"}, ""},
	{16, "names in other spellings", []string{"specs/policy TestNormalHost: ideographic", "egress/worker TestHTTPRequests: capitals, dot and port", "egress/worker TestScreenHello: the name in capitals", "specs/policy FuzzNormalHost"}, ""},
	{17, "wildcards that catch too much", []string{"specs/policy TestDecide: evilexample.org", "specs/policy TestOpenBelow"}, ""},
	{18, "UDP, QUIC", []string{"integration TestLaw4NothingLeavesButThroughTheGateway: udp [2001:db8::1]:443", "hooks TestSealSteersEverythingToTheListeners", "hooks TestRefusedPacketsAreReported", "integration TestWhatIsNoTCPIsInTheLog"}, ""},
	{19, "other protocols of IP", []string{"integration TestNetAttackFence: UDP-Lite", "integration TestLaw4NothingLeavesButThroughTheGateway: sctp"}, ""},
	{20, "raw and packet sockets", []string{"integration TestLaw4NothingLeavesButThroughTheGateway: socket 17 3 768", "specs/seccomp TestFilter: SOCK_RAW"}, ""},
	{21, "other families of sockets: vsock, ALG and more", []string{"specs/seccomp TestFilter: unix.AF_VSOCK", "integration TestEscapes"}, ""},
	{22, "io_uring", []string{"specs/seccomp TestDenied: io_uring_setup", "integration TestEscapes"}, ""},
	{23, "netlink", []string{"specs/seccomp TestFilter: NETLINK_NETFILTER", "integration TestEscapes"}, ""},
	{24, "sockets in the file system", []string{"integration TestLaw9GatewayIsOutOfReach", "integration/engines TestGuardedVolumes", "integration TestAttackBySpec"}, "Connect to a unix socket"},
	{25, "IPv6", []string{"integration TestLaw4NothingLeavesButThroughTheGateway: dial [2001:db8::1]:443", "hooks TestFenceWithoutIPv6"}, ""},
	{26, "connection tracking: races, exhaustion", []string{"integration TestConnectionsAreNotTracked"}, "connection tracking up to the host's limit"},
	{27, "flushing the rules", []string{"hooks TestTheNamespacesOwnerGetsNothingOut", "integration TestAttackInUserNamespace"}, ""},
	{28, "a cable that comes later", []string{"hooks TestFollowMovesWhatComesLater", "hooks TestFenceHoldsWhileTheCableIsInside"}, ""},
	{29, "SO_BINDTODEVICE", []string{"integration TestLaw4NothingLeavesButThroughTheGateway: dial-over eth0", "integration TestNetAttackFence: dial-over eth0"}, ""},
	{30, "the gateway's own sockets", []string{"integration TestLaw9GatewayIsOutOfReach", "egress/worker TestRefusals: the gateway itself", "integration TestNetAttackFence: the steering port", "egress/monitor TestStrangersAreRefused"}, ""},
	{31, "a connection that outlives what allowed it", []string{"egress/worker TestReloadCutsWhatIsNoLongerAllowed", "egress/worker TestExpiryCuts", "integration TestLaw6RevokedConnectionsAreCut"}, ""},
	{32, "half a hello, for ever", []string{"integration TestNetAttackHoarding", "integration TestFloods: half-open", "egress/worker TestIdleTimeout"}, ""},
	{33, "many connections", []string{"egress/worker TestTooManyConnections", "integration TestFloods", "integration TestFewDescriptors"}, ""},
	{34, "many questions", []string{"egress/dns TestRate", "integration TestFloods: questions"}, ""},
	{35, "many names", []string{"egress/dns TestFloodOfNames", "egress/dns TestPinnedNamesOverflow", "integration TestFloods: names"}, ""},
	{36, "control characters in names and arguments", []string{"egress/audit TestAgentTextIsHarmless", "cmd/nemoclawctl TestTerminalIsSafe", "integration TestDeniedNamesAreInert"}, ""},
	{37, "names that look right, asked for again and again", []string{"egress/monitor TestPending", "egress/monitor TestPendingIsBounded", "egress/worker TestFloodIsFolded"}, "Ask for approval"},
	{38, "editing the policy", []string{"integration TestLaw9GatewayIsOutOfReach", "integration TestAttackBySpec"}, ""},
	{39, "an allowed host that sends on to another", []string{"integration TestClients: sent on"}, ""},
	{40, "heads without end, bodies of unknown length", []string{"egress/worker TestHTTPRequests: a head without end", "egress/worker TestHTTPRequests: a chunk of unknown length", "egress/worker TestLongHello"}, ""},
	{41, "sending to a host that is allowed", []string{"egress/worker TestMaxUpload"}, "to a host that the policy allows"},
	{42, "MPTCP", []string{"integration TestNetAttackFence: MPTCP", "integration TestLaw4NothingLeavesButThroughTheGateway: dial-mptcp"}, ""},

	{43, "killing the gateway at any moment", []string{"integration TestNetAttackWhileTheGatewayDies", "integration TestWorkerDiesAgainAndAgain", "integration TestMonitorDiesUnderConnections"}, ""},
	{44, "a death between create and start", []string{"integration TestNetAttackBeforeTheStart"}, ""},
	{45, "rules that change while a connection is made", []string{"egress/worker TestRulesChangeWhileDialing", "egress/worker TestRevokedWhileClassifying"}, ""},
	{46, "a disk that fills up", []string{"integration TestLaw7DecisionsAreWrittenFirst: testNoRoomMeansNo", "egress/audit TestFullDisk"}, ""},
	{47, "taking a refused connection for one that stands", []string{"integration TestConnectSucceedsBeforeTheReset"}, "`connect` succeeds and the reset comes after"},
	{48, "readers and writers that are slow, or never come", []string{"integration TestFloods: slow", "egress/monitor TestSlowOperators"}, ""},
	{49, "the gateway's addresses, ports and marks as one's own", []string{"integration TestNetAttackFence: the gateway's mark", "integration TestNetAttackFence: the listener's address"}, ""},
	{50, "source routes, fragments, groups and broadcasts", []string{"integration TestNetAttackFence: a strict source route", "hooks TestSourceRoutes", "integration TestNetAttackFence: fragments", "integration TestNetAttackFence: a group on lo"}, ""},
	{51, "an approval used more often than it says", []string{"egress/monitor TestUsesAreCountedOnce", "egress/worker TestOnceIsForWhoWaits"}, ""},
	{52, "a worker that was taken over", []string{"egress/monitor TestOpenConnections", "egress/monitor TestWorkersWordsAreBounded", "cmd/nemoclaw-gateway TestTakenOver"}, ""},
	{53, "data with the SYN, before anything was decided", []string{"integration TestNetAttackFence: data with the SYN", "egress/worker TestNothingPassesBeforeItIsWritten"}, ""},
	{54, "a server that vanishes while much is under way", []string{"integration TestUpstreamVanishes"}, ""},
	{55, "a packet that nobody decided about", []string{"integration TestEveryPacketIsExplained"}, ""},
	{56, "a clock that is set", []string{"egress/control TestUptimeIsNoWallClock", "egress/worker TestGrantEnds", "egress/worker TestTimeToLiveEnds", "egress/worker TestExpiryCuts"}, ""},
	{57, "a name that an operator's shell would run", []string{"cmd/nemoclawctl TestCompletionRunsNothing", "egress/monitor TestPendingHasNames"}, ""},
	{58, "what was revoked, after the gateway was lost and its policy file has a fault", []string{"egress/monitor TestNothingRevokedComesBack", "integration TestRepairBringsNothingBack"}, ""},
	{59, "connections that wait, to keep others' out of sight", []string{"egress/monitor TestWaitingEnds", "egress/worker TestHeldAreBounded"}, ""},
	{60, "the looks of an allowed program", []string{"egress/monitor TestOwnerIsNotTakenForGranted", "egress/monitor TestHoldingIsNotConnecting"}, "Be another program than it looks"},
	{61, "the addresses of a gateway that was lost", []string{"integration TestRepairWithoutItsAddresses"}, "Take the place of a lost gateway"},
	{62, "calling in, and being answered, unseen", []string{"integration TestLaw4InboundConnectionsAreRecorded", "integration TestEveryPacketIsExplained", "integration TestInboundRefusalsAreRecorded"}, "law 7 does not hold for it"},
	{63, "a crowd of calls", []string{"egress/monitor TestInboundFlood", "egress/monitor TestInboundTableIsBounded", "integration TestInboundFlood"}, "Be called in a crowd"},
	{64, "thousands of sockets with one port, and a port that is left to another for the blame", []string{"egress/monitor TestPortsOfDatagrams"}, ""},
	{65, "answers, and questions, in the gateway's name: a pod's neighbour between the others and their DNS", []string{"hooks TestAnswersAreTheGateways", "hooks TestQuestionsAreTheGateways"}, ""},
	{66, "a caller that the program makes up, to answer him", []string{"hooks TestNobodyCallsFromInside"}, ""},
	{67, "the firewall, by the socket on which the kernel tells a worker of refused packets", []string{"cmd/nemoclaw-gateway TestTakenOver: by the socket that tells of them"}, ""},
	{68, "another name in the ClientHello that answers a HelloRetryRequest", nil, "in a second ClientHello where its servers take one"},
	{69, "years of lines: the disk, and what is remembered of old files", []string{"egress/audit TestKeep", "egress/audit TestForgottenFiles", "egress/worker TestFloodIsFolded"}, "a program can fill the disk"},
	{70, "a flood of datagrams, to hide one or to keep others waiting", []string{"integration TestRefusedPacketsAreCounted", "egress/worker TestLostReports"}, "of those that found no room on their way a line tells the number"},
	{71, "a datagram from a socket that is closed before anybody looks", []string{"egress/monitor TestSender: sendclose"}, "who sent to that address last is named, with that doubt"},
	{72, "a denial for good that an older one, which ends, keeps out of the policy", []string{"specs/policy TestAddBesideWhatEnds"}, ""},
}

// Each attack is tried by a test that exists, or the threat model owns up to it.
func TestEveryAttackIsTried(t *testing.T) {
	threats, err := os.ReadFile("../THREAT_MODEL.md")
	if err != nil {
		t.Fatal(err)
	}
	flowing := strings.Join(strings.Fields(string(threats)), " ")
	for i, a := range attacks {
		if a.number != i+1 {
			t.Errorf("attack %d stands where %d should", a.number, i+1)
		}
		if len(a.tests) == 0 && a.limit == "" {
			t.Errorf("attack %d, %s: nothing tries it", a.number, a.what)
		}
		if a.limit != "" && !strings.Contains(flowing, a.limit) {
			t.Errorf("attack %d, %s: THREAT_MODEL.md does not say %q", a.number, a.what, a.limit)
		}
		for _, test := range a.tests {
			if err := isTried(test); err != nil {
				t.Errorf("attack %d, %s: %v", a.number, a.what, err)
			}
		}
	}
}

// isTried finds the test "PACKAGE NAME: WORDS".
func isTried(test string) error {
	test, words, _ := strings.Cut(test, ": ")
	dir, name, _ := strings.Cut(test, " ")
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), "\nfunc "+name+"(") {
			continue
		}
		if !strings.Contains(string(text), words) {
			return fmt.Errorf("%s says nothing of %q", file, words)
		}
		return nil
	}
	return fmt.Errorf("%s has no %s", dir, name)
}
