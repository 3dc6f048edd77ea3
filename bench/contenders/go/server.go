package main

import (
	"net/http"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	"github.com/labstack/echo/v4"
)

type claims struct {
	DeviceID string `json:"device_id"`
	jwt.RegisteredClaims
}

type server struct {
	hub      *Hub
	consumer Consumer
	secret   []byte
	parser   *jwt.Parser
	upgrader websocket.Upgrader
}

func newServer(hub *Hub, consumer Consumer, secret []byte) *echo.Echo {
	s := &server{
		hub:      hub,
		consumer: consumer,
		secret:   secret,
		parser:   jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired()),
		upgrader: websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024},
	}
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.GET("/ws", s.serveDevice)
	e.GET("/ready", s.serveReady)
	return e
}

func (s *server) serveReady(c echo.Context) error {
	if !s.consumer.Ready(c.Request().Context()) {
		return c.NoContent(http.StatusServiceUnavailable)
	}
	return c.NoContent(http.StatusOK)
}

func (s *server) serveDevice(c echo.Context) error {
	var who claims
	_, err := s.parser.ParseWithClaims(c.QueryParam("token"), &who, func(*jwt.Token) (any, error) { return s.secret, nil })
	if err != nil || who.DeviceID == "" {
		return echo.NewHTTPError(http.StatusUnauthorized, "bad token")
	}
	client := newClient(s.hub, who.DeviceID)
	if !s.hub.Register(client) {
		return echo.NewHTTPError(http.StatusConflict, "device already connected")
	}
	client.conn, err = s.upgrader.Upgrade(c.Response(), c.Request(), nil)
	if err != nil { // it has answered
		s.hub.unregister <- client
		return nil
	}
	go client.writePump()
	go client.readPump()
	return nil
}
