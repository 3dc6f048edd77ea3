package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"syscall"
	"time"
)

const (
	devicesPerAddress = 5_000
	tokenLifetime     = 24 * time.Hour
	bindWithoutPort   = 24 // IP_BIND_ADDRESS_NO_PORT: the port is chosen when the destination is known
)

type state uint8

const (
	away state = iota
	connectingTCP
	upgrading
	joining // the upgrade is done, and the server has yet to let the device in
	open
)

// device is one of them, over all its attempts to connect.
type device struct {
	index    int
	fd       int
	port     int // of the server that this attempt is for
	state    state
	attempt  int       // how many it has made
	began    time.Time // of this attempt
	retryAt  time.Time // if it is away and is to come back
	name     []byte    // as its messages must name it: "device_id":"..."
	prefix   []byte    // with which its messages must begin
	request  []byte
	rest     []byte // the beginning of what has not come whole yet
	sequence int64  // of its last message
	cursor   string // of its last message, if it has one
}

func newDevice(index int, secret []byte, port int, speaking dialect, grouped bool) *device {
	id, membership := deviceID(index), ""
	if grouped {
		membership = speaking.membership
	}
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"+
		"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		speaking.target(mint(id, secret, membership)), port)
	return &device{
		index: index, fd: -1, sequence: -1, name: []byte(`"device_id":"` + id + `"`), prefix: speaking.prefix(id),
		request: []byte(request),
	}
}

func deviceID(index int) string { return "device-" + strconv.Itoa(index) }

// mint signs a token as the gateways expect it, with HS256. The membership is further claims, or nothing.
func mint(deviceID string, secret []byte, membership string) string {
	now := time.Now()
	claims := fmt.Sprintf(`{"device_id":%q,"user_id":99,"device_version":"1.0.0","iss":"cocoa-fruit-agentic",`+
		`"sub":"audio-streaming","iat":%d,"exp":%d%s}`, deviceID, now.Unix(), now.Add(tokenLifetime).Unix(), membership)
	encoding := base64.RawURLEncoding
	signed := encoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + encoding.EncodeToString(mac.Sum(nil))
}

// dial begins to connect, from one of several loopback addresses: one alone has not enough ports for all.
func (d *device) dial(port int) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	from := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + d.index/devicesPerAddress)}}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, bindWithoutPort, 1)
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	// A device that leaves is gone at once, and its port free.
	_ = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	if err = syscall.Bind(fd, from); err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port})
	}
	if err != nil && err != syscall.EINPROGRESS {
		syscall.Close(fd)
		return err
	}
	d.fd, d.port, d.state = fd, port, connectingTCP
	return nil
}

// answer is what a server says to the request for an upgrade.
type answer struct {
	status     int
	retryAfter time.Duration
	size       int // of the header, bytes
}

// readAnswer is false as long as the header is not whole. A status of 0 is no HTTP.
func readAnswer(data []byte) (answer, bool) {
	size := bytes.Index(data, []byte("\r\n\r\n"))
	if size < 0 {
		return answer{}, false
	}
	found := answer{size: size + 4}
	if fields := bytes.Fields(data[:size]); len(fields) > 1 {
		found.status, _ = strconv.Atoi(string(fields[1]))
	}
	for _, line := range bytes.Split(data[:size], []byte("\r\n")) {
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Retry-After")) {
			seconds, _ := strconv.Atoi(string(bytes.TrimSpace(value)))
			found.retryAfter = time.Duration(seconds) * time.Second
		}
	}
	return found, true
}

const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// readFrame is false as long as the frame is not whole. Servers do not mask.
func readFrame(data []byte) (opcode byte, payload []byte, size int, whole bool) {
	if len(data) < 2 {
		return 0, nil, 0, false
	}
	length, header := uint64(data[1]&0x7f), 2
	switch {
	case length == 126 && len(data) >= 4:
		length, header = uint64(binary.BigEndian.Uint16(data[2:])), 4
	case length == 127 && len(data) >= 10:
		length, header = binary.BigEndian.Uint64(data[2:]), 10
	case length >= 126:
		return 0, nil, 0, false
	}
	if uint64(len(data)-header) < length {
		return 0, nil, 0, false
	}
	size = header + int(length)
	return data[0] & 0x0f, data[header:size], size, true
}

// control sends a ping or a pong, masked with zeros: that is a mask, too. One that does not fit into the socket is lost.
func (d *device) control(opcode byte, payload []byte) {
	frame := append([]byte{0x80 | opcode, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	_, _ = syscall.Write(d.fd, frame)
}

// number finds a field that is an integer; -1 if there is none.
func number(payload []byte, field string) int64 {
	at := bytes.Index(payload, []byte(field))
	if at < 0 {
		return -1
	}
	value, digits := int64(0), payload[at+len(field):]
	for _, digit := range digits {
		if digit < '0' || digit > '9' {
			break
		}
		value = value*10 + int64(digit-'0')
	}
	return value
}
